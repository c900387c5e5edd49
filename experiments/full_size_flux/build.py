"""Write a FLUX pipeline whose transformer has its full size and random weights in bfloat16.

    python experiments/full_size_flux/build.py FOLDER [--small]

The transformer takes 24 GB in safetensors. They are written in shards of at most 1 GiB, one after
the other, so that no more is in memory. Text encoders and VAE are small: nothing is measured of
them, but they let the pipeline draw. With --small, the transformer is narrow and has two blocks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments" / "bench"))

from random_values import byte_tokenizer, fill  # noqa: E402

CONFIG = ROOT / "conf" / "model" / "flux.yaml"
DTYPE = torch.bfloat16
SHARD_BYTES = 2**30
SMALL = {
    "num_layers": 1,
    "num_single_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "axes_dims_rope": [4, 4, 8],
    "joint_attention_dim": 64,
}
STEM = "diffusion_pytorch_model"


class Noise:
    """Normal values that cost little more than writing them.

    A window of a block is scaled anew for every row, so that no two weights and no two rows are
    alike. Norms and biases do nothing.

    Args:
        num: size of a window.
    """

    def __init__(self, num: int = 1 << 22) -> None:
        self._num = num
        self._rng = np.random.default_rng(0)
        block = self._rng.standard_normal(2 * num, dtype=np.float32)
        self._block = torch.from_numpy(block).to(DTYPE)

    def parameter(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Make the values of one parameter up.

        Args:
            name: of the parameter.
            shape: of the parameter.

        Returns:
            Values of deviation fan_in^-1/2 in bfloat16.
        """
        if len(shape) < 2:
            return torch.full(shape, 1.0 if name.endswith("weight") else 0.0, dtype=DTYPE)
        values = torch.empty(shape, dtype=DTYPE)
        rows = values.view(shape[0], -1)
        spread = self._rng.lognormal(0, 0.25, shape[0]) * rows.shape[1] ** -0.5
        scales = torch.from_numpy(spread).to(DTYPE)[:, None]
        for piece, scale in zip(
            rows.split(max(1, self._num // rows.shape[1])),
            scales.split(max(1, self._num // rows.shape[1])),
            strict=True,
        ):
            start = int(self._rng.integers(self._num))
            window = self._block[start : start + piece.numel()]
            torch.mul(window.view(piece.shape), scale, out=piece)
        return values


def shards(shapes: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    """Divide parameters into shards.

    Args:
        shapes: of the parameters by name.

    Yields:
        Names of at most `SHARD_BYTES` together, or of one parameter.
    """
    names: list[str] = []
    size_bytes = 0
    for name, shape in shapes.items():
        own_bytes = 2 * int(np.prod(shape))
        if names and size_bytes + own_bytes > SHARD_BYTES:
            yield names
            names, size_bytes = [], 0
        names.append(name)
        size_bytes += own_bytes
    yield names


def write_transformer(folder: Path, config: dict[str, Any]) -> int:
    """Write the transformer, shard by shard.

    Args:
        folder: of the component.
        config: of the transformer.

    Returns:
        Number of its parameters' values.
    """
    from diffusers import FluxTransformer2DModel
    from safetensors.torch import save_file

    with torch.device("meta"):
        module = FluxTransformer2DModel(**config)
    module.save_config(folder)
    shapes = {name: tuple(value.shape) for name, value in module.named_parameters()}
    noise, plan = Noise(), list(shards(shapes))
    place: dict[str, str] = {}
    for i, names in enumerate(plan, 1):
        file = f"{STEM}-{i:05}-of-{len(plan):05}.safetensors"
        tensors = {name: noise.parameter(name, shapes[name]) for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        place |= dict.fromkeys(names, file)
    num = sum(int(np.prod(shape)) for shape in shapes.values())
    index = {"metadata": {"total_size": 2 * num}, "weight_map": place}
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return num


def write_others(folder: Path, text_width: int, num_channels: int) -> None:
    """Write the small parts of the pipeline, and the index that names all parts.

    Args:
        folder: of the pipeline.
        text_width: of T5's output.
        num_channels: of the transformer's inputs: four latent pixels of each channel of the VAE.
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5Tokenizer

    rng = np.random.default_rng(1)
    letters = [(letter, -2.0) for letter in "▁abcdefghijklmnopqrstuvwxyz,"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters]
    clip = CLIPTextConfig(
        hidden_size=768,
        intermediate_size=768,
        num_hidden_layers=1,
        num_attention_heads=12,
        vocab_size=49408,
        eos_token_id=49407,
    )
    t5 = T5Config(
        vocab_size=len(pieces), d_model=text_width, d_kv=64, d_ff=64, num_layers=1, num_heads=1,
        is_encoder_decoder=False,
    )  # fmt: skip
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[32, 32, 64, 64],
            latent_channels=num_channels // 4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.3611,
            shift_factor=0.1159,
        )
        texts = CLIPTextModel(clip), T5EncoderModel(t5)
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=fill(vae, DTYPE, rng),
        text_encoder=fill(texts[0], DTYPE, rng),
        tokenizer=byte_tokenizer(),
        text_encoder_2=fill(texts[1], DTYPE, rng),
        tokenizer_2=T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512),
        transformer=None,
    )
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"
    parts = json.loads(index.read_text(encoding="utf-8"))
    parts["transformer"] = ["diffusers", "FluxTransformer2DModel"]
    index.write_text(json.dumps(parts, indent=1), encoding="utf-8")


def build(folder: Path, small: bool = False) -> int:
    """Write the pipeline.

    Args:
        folder: where it goes.
        small: with a narrow transformer of two blocks.

    Returns:
        Number of the transformer's values.
    """
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["config"]
    config |= SMALL if small else {}
    write_others(folder, config["joint_attention_dim"], config["in_channels"])
    return write_transformer(folder / "transformer", config)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    print(f"{build(args.folder, args.small):,} values")
