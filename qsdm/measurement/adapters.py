"""What a LoRA does to a denoiser's output, under full precision and under configurations.

The adapter keeps its own precision and is computed beside the weights, as on a packed checkpoint.
Its effect on an input is the output with it minus the output without it; the inputs are recorded
while full precision draws without it, so no further picture is drawn.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qsdm.measurement.drawer import Drawer, is_out_of_memory
from qsdm.measurement.forward import Call, output_of, require_repeatable, squares_of
from qsdm.outcome import EvaluationError, Protocol
from qsdm.qconfig import QuantConfig
from qsdm.store.files import read_json
from qsdm.store.header import read_header

PEFT = "base_model.model."  # what peft's own files put before each name
PREFIXES = (PEFT, "diffusion_model.", "lora_unet_", "lora_transformer_")
PARTS = re.compile(r"\.(?:lora|lokr|alpha|dora)")
SETTINGS = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern", "use_rslora")
"""Of peft's ``adapter_config.json``, what changes the adapter's values."""


class AdapterError(ValueError):
    """A file is no LoRA, or one of another denoiser; the message says what to give."""


@dataclass(frozen=True, slots=True)
class AdapterTask:
    """Compare an adapter's effect under configurations with that at full precision.

    The result is float64 [C + 1, drawings], see `Effects.squares`.

    Attributes:
        qconfigs: C configurations.
        protocol: how pictures are drawn, whose inputs are recorded.
        num_steps: time steps.
        adapter: file of the LoRA.
    """

    qconfigs: tuple[QuantConfig, ...]
    protocol: Protocol
    num_steps: int
    adapter: Path


def keys_of(path: Path) -> list[str]:
    """Read the names of a LoRA's tensors.

    Args:
        path: a safetensors file.

    Returns:
        The names.

    Raises:
        AdapterError: there is no such file, or it holds no LoRA.
    """
    if not path.is_file():
        raise AdapterError(f"no file {path}: give lora=FILE, the safetensors file of a LoRA")
    try:
        keys = list(read_header(path).parts)
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{path} is no safetensors file ({error}): give lora=FILE, that of a LoRA"
        ) from error
    if not any("lora" in key or "lokr" in key for key in keys):
        raise AdapterError(
            f"{path} holds no LoRA: none of its {len(keys)} tensors has lora in its name "
            f"({', '.join(sorted(keys)[:2])}, ...); give the file of an adapter"
        )
    return keys


def layers_in(keys: Iterable[str], component: str) -> set[str]:
    """Name the denoiser's layers that a LoRA is for.

    Args:
        keys: names of its tensors, as diffusers, peft or kohya spell them.
        component: the denoiser's attribute of the pipeline.

    Returns:
        Names as in the file, without prefixes; those of text encoders are left out.
    """
    layers = set()
    for key in keys:
        name = PARTS.split(key)[0]
        if name.startswith(("text_encoder", "lora_te")):
            continue
        prefix = next((p for p in (f"{component}.", *PREFIXES) if name.startswith(p)), "")
        layers.add(name.removeprefix(prefix))
    return layers


def attach(drawer: Drawer, path: Path) -> None:
    """Put a LoRA on a drawer's denoiser, switched off.

    Args:
        drawer: the pipeline.
        path: file of the LoRA, in any format that diffusers reads for this pipeline, or peft's own.

    Raises:
        AdapterError: the file holds no LoRA, or not one of this denoiser.
        EvaluationError: the denoiser takes no LoRA, or peft is missing.
    """
    denoiser, keys = drawer.denoiser, keys_of(path)
    if not hasattr(denoiser, "load_lora_adapter"):
        kind = type(denoiser).__name__
        raise EvaluationError(f"a {kind} takes no LoRA in diffusers: leave out lora={path}")
    layers = layers_in(keys, drawer.model.component)
    names = {name for name, _ in denoiser.named_modules()}
    own = len(layers & (names | {name.replace(".", "_") for name in names}))
    if 0 < own < len(layers):
        raise _of_another(drawer, path, own, len(layers))
    try:
        _load(drawer, path, keys)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, EvaluationError) or is_out_of_memory(error):
            raise
        raise _of_another(drawer, path, own, len(layers), str(error)) from error
    if not getattr(denoiser, "peft_config", None):  # diffusers only warns of it
        raise _of_another(drawer, path, own, len(layers))
    if hasattr(drawer.pipeline, "disable_lora"):
        drawer.pipeline.disable_lora()  # text encoders' layers, too
    switched(denoiser, False)


def _of_another(drawer: Drawer, path: Path, own: int, num: int, reason: str = "") -> AdapterError:
    """The error about a LoRA of whose layers a denoiser has some or none."""
    kind = type(drawer.denoiser).__name__
    because = f" ({' '.join(reason.split())[:160]})" * bool(reason)
    return AdapterError(
        f"{path} is of another denoiser than {drawer.model.name!r}: its {kind} has {own} of the "
        f"{num} layers that the file names{because}; give a LoRA that was trained on this {kind}"
    )


def _load(drawer: Drawer, path: Path, keys: Sequence[str]) -> None:
    """Let diffusers load a LoRA, without warnings and without what its errors log."""
    logger = logging.getLogger("diffusers.loaders.peft")
    was_off, logger.disabled = logger.disabled, True
    try:
        import peft  # noqa: F401 (diffusers needs it for this)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _read(drawer, path, keys)
    except ImportError as error:
        raise EvaluationError("a LoRA needs peft: run pip install peft") from error
    finally:
        logger.disabled = was_off


def _read(drawer: Drawer, path: Path, keys: Sequence[str]) -> None:
    """Load by the pipeline's loader; by the denoiser's, where that knows not peft's own names."""
    pipeline, denoiser = drawer.pipeline, drawer.denoiser
    layers: Any = denoiser
    source = {"weight_name": path.name, "use_safetensors": True}
    names = {f"{PEFT}{name}" for name, _ in denoiser.named_modules()}
    if {PARTS.split(key)[0] for key in keys} <= names:
        from safetensors.torch import load_file

        state = {key.removeprefix(PEFT): value for key, value in load_file(path).items()}
        layers.load_lora_adapter(state, prefix=None, metadata=_settings(path))
    elif hasattr(pipeline, "load_lora_weights"):
        pipeline.load_lora_weights(path.parent, **source)
    else:
        layers.load_lora_adapter(path.parent, prefix=drawer.model.component, **source)


def _settings(path: Path) -> Mapping[str, Any] | None:
    """What peft has written beside its file; None without it: then alpha is the rank."""
    beside = path.parent / "adapter_config.json"
    if not beside.is_file():
        return None
    settings = read_json(beside)
    return {name: settings[name] for name in SETTINGS if settings.get(name) is not None}


def switched(denoiser: nn.Module, is_on: bool) -> None:
    """Switch an attached adapter on or off.

    Args:
        denoiser: with an adapter.
        is_on: whether its outputs are computed.
    """
    module: Any = denoiser
    module.enable_lora() if is_on else module.disable_lora()


class Effects:
    """An adapter on a drawer's denoiser, and its effect at full precision.

    Args:
        drawer: the pipeline; the adapter stays on its denoiser, switched off between calls.
        calls: inputs and outputs that were recorded without the adapter.
        path: file of the LoRA.

    Raises:
        AdapterError: the file holds no LoRA, or not one of this denoiser.
        EvaluationError: the adapter does nothing, or the denoiser does not repeat its outputs.
    """

    def __init__(self, drawer: Drawer, calls: Sequence[Call], path: Path) -> None:
        self._drawer, self._calls = drawer, calls
        self._num = 1 + max(number for call in calls for number in call.drawings)
        require_repeatable(drawer, calls, self._num)
        attach(drawer, path)
        self._full = self._of(QuantConfig(drawer.model.name, {}))
        self._whole = self._summed(self._full)
        if not self._whole.all():
            raise EvaluationError(
                f"{path} changes no output of {drawer.model.name!r}: there is nothing to retain"
            )

    def squares(self, qconfigs: Sequence[QuantConfig]) -> np.ndarray:
        """Compute how far configurations change the effect.

        Args:
            qconfigs: C configurations.

        Returns:
            Float64 [C + 1, drawings]: squares of each configuration's effect minus that of full
            precision, summed over values and time steps; the last row is full precision's effect
            itself.

        Raises:
            EvaluationError: an output is not finite.
        """
        rows = []
        for qconfig in qconfigs:
            pairs = zip(self._of(qconfig), self._full, strict=True)
            rows.append(self._summed([effect - full for effect, full in pairs]))
            if not np.isfinite(rows[-1]).all():
                raise EvaluationError(
                    f"the denoiser's output under configuration {qconfig.digest[:12]} is not finite"
                )
        return np.stack([*rows, self._whole])

    @torch.inference_mode()
    def _of(self, qconfig: QuantConfig) -> list[Tensor]:
        """The effect on each recorded call, float32 [N, ...]."""
        self._drawer.switch(qconfig)
        without = [self._output(call) for call in self._calls]
        switched(self._drawer.denoiser, True)
        try:
            adapted = [self._output(call) for call in self._calls]
        finally:
            switched(self._drawer.denoiser, False)
        return [a - b for a, b in zip(adapted, without, strict=True)]

    def _output(self, call: Call) -> Tensor:
        args, kwargs = call.arguments
        return output_of(self._drawer.denoiser(*args, **kwargs))

    def _summed(self, effects: Sequence[Tensor]) -> np.ndarray:
        """Squares by drawing, float64 [drawings]."""
        total = np.zeros(self._num)
        for call, effect in zip(self._calls, effects, strict=True):
            total[list(call.drawings)] += squares_of(effect, len(call.drawings))
        return total
