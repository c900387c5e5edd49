"""What the zoo's training commands share: emoji set, moving averages, resumable checkpoints.

A checkpoint is a safetensors file of EMA weights with the step in its metadata. A resumed run
starts from the EMA weights with a fresh optimizer, whose learning rate is warmed up again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor, nn

from qsdm.denoisers import computed_in


def emoji_set(store: Path) -> tuple[np.ndarray, list[dict]]:
    """Pictures uint8 [N, 32, 32, 3] and their rows, made by ``data.py``."""
    if not (store / "emoji.safetensors").exists():
        raise SystemExit(f"no emoji set in {store}: run python experiments/zoo/data.py first")
    rows = json.loads((store / "emoji.json").read_text())["rows"]
    return load_file(store / "emoji.safetensors")["images"], rows


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [N, H, W, 3] => float32 [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def halved() -> torch.autocast:
    """Forward passes in bfloat16, where the processor has it."""
    return torch.autocast("cpu", torch.bfloat16, enabled=computed_in("bfloat16") == torch.bfloat16)


def save(
    path: Path, weights: dict[str, Tensor], step: int, dtype: torch.dtype = torch.float32
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    tensors = {
        k: v.detach().to(dtype if v.is_floating_point() else v.dtype).contiguous()
        for k, v in weights.items()
    }
    save_file(tensors, partial, metadata={"step": str(step)})
    partial.replace(path)


def resume(path: Path, module: nn.Module) -> int:
    """Load a checkpoint if there is one; the step it was made at, else 0."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        module.load_state_dict({k: file.get_tensor(k).float() for k in file.keys()}, strict=False)  # noqa: SIM118
        return int(file.metadata()["step"])


def batches(indices: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Endless shuffled epochs without a short last batch."""
    while True:
        shuffled = rng.permutation(indices)
        for start in range(0, len(shuffled) - size + 1, size):
            yield shuffled[start : start + size]


def fit(
    module: nn.Module,
    loss_of: Callable[[np.ndarray], Tensor],
    indices: np.ndarray,
    checkpoint: Path,
    args: argparse.Namespace,
) -> nn.Module:
    """Train a module, and leave it with its EMA weights.

    Args:
        module: to be trained, in place.
        checkpoint: file from which the training continues, and to which it is saved.
        loss_of: indices of a batch => scalar loss.
        indices: of the training rows.
        args: steps, batch, lr, seed, minutes, threads (see ``arguments``).
    """
    torch.set_num_threads(args.threads)
    start = resume(checkpoint, module)
    torch.manual_seed(args.seed * 1_000_003 + start)
    rng = np.random.default_rng([args.seed, start])
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=args.lr, weight_decay=0.01, betas=(0.9, 0.99), fused=True
    )
    average = {k: v.detach().clone() for k, v in module.state_dict().items()}
    floats = {k: v for k, v in module.state_dict().items() if v.is_floating_point()}
    averaged, current = [average[k] for k in floats], list(floats.values())
    began, running, warmup = time.time(), None, min(200, args.steps // 10 + 1)
    for step, batch in zip(
        range(start, args.steps), batches(indices, args.batch, rng), strict=False
    ):
        remaining = (args.steps - step) / max(1, args.steps - start)
        factor = min(1.0, (step - start + 1) / warmup) * (
            0.05 + 0.95 * min(1.0, remaining / args.decay)
        )
        for group in optimizer.param_groups:
            group["lr"] = args.lr * factor
        loss = loss_of(batch)
        if not torch.isfinite(loss):
            raise RuntimeError(
                f"loss is {loss.item()} at step {step}: lower --lr and run again from {checkpoint}"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        beta = min(args.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(averaged, current, 1 - beta)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            pace = (time.time() - began) / (step + 1 - start)
            print(
                f"step {step + 1}/{args.steps}  loss {running:.4f}  {pace:.3f} s/step", flush=True
            )
        if (step + 1) % 200 == 0 or step + 1 == args.steps:
            save(checkpoint, average, step + 1)
        if args.minutes and time.time() - began > 60 * args.minutes:
            print(
                f"{args.minutes} minutes are over at step {step + 1}: run again to go on",
                flush=True,
            )
            save(checkpoint, average, step + 1)
            break
    module.load_state_dict(average)
    return module.eval()


def arguments(doc: str | None, **defaults: float) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--store", type=Path, default=Path("store/zoo"), help="where data and checkpoints lie"
    )
    parser.add_argument(
        "--zoo", type=Path, default=Path("qsdm/zoo"), help="where the shipped pipelines lie"
    )
    parser.add_argument(
        "--steps", type=int, default=defaults["steps"], help="train until this step"
    )
    parser.add_argument("--batch", type=int, default=defaults["batch"])
    parser.add_argument("--lr", type=float, default=defaults["lr"])
    parser.add_argument(
        "--ema",
        type=float,
        default=defaults["ema"],
        help="decay of the moving average of the weights",
    )
    parser.add_argument(
        "--decay",
        type=float,
        default=0.5,
        help="share of the run over which the rate falls linearly",
    )
    parser.add_argument("--seed", type=int, default=defaults.get("seed", 0))
    parser.add_argument(
        "--minutes", type=float, default=0, help="stop after so many minutes (0: at --steps)"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser
