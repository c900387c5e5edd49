"""What a whole pipeline weighs: bytes of its components from their files' headers, and of a forward's activations.

No weights are loaded. Bytes are those of the files: who loads in another type holds another number of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsdm import cost
from qsdm.denoisers import Model, ModelError, denoiser_class, denoiser_config
from qsdm.denoisers.files import pipeline_files, pipeline_folder
from qsdm.graph import Graph, Op
from qsdm.qconfig import QuantConfig
from qsdm.store.tensors import read_header
from qsdm.tracing import TraceError


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        size_bytes: as stored.
    """

    num_values: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a pipeline.

    Attributes:
        denoiser: the name of the component that is the denoiser.
        components: bytes by name, as stored; empty if there are no files.
        missing: why there are no files, one sentence; empty if there are.
        packed_bytes: of the denoiser under some configurations; none if nothing of it is known.
        activation_bytes: at most at once, of one picture in one forward of the denoiser; None if it is not known.
        guided: pictures may be drawn with classifier-free guidance.
    """

    denoiser: str
    components: Mapping[str, int]
    missing: str = ""
    packed_bytes: tuple[int, ...] = ()
    activation_bytes: int | None = None
    guided: bool = False

    @property
    def groups(self) -> dict[str, int]:
        """Bytes of the denoiser, the text encoders together, and every other component."""
        found = (
            {"denoiser": self.components[self.denoiser]} if self.denoiser in self.components else {}
        )
        for name, size in sorted(
            self.components.items(), key=lambda pair: not pair[0].startswith("text_encoder")
        ):
            if name != self.denoiser:
                group = "text encoders" if name.startswith("text_encoder") else name
                found[group] = found.get(group, 0) + size
        return found

    def line(self, batch_size: int = 1) -> str:
        """One line: everything, and the activations of a forward of ``batch_size`` pictures."""
        parts = {name: f"{name} {size_text(size)}" for name, size in self.groups.items()}
        if "denoiser" in parts and self.packed_bytes:
            parts["denoiser"] += (
                f" (packed {' to '.join(dict.fromkeys(map(size_text, self.packed_bytes)))})"
            )
        found = ", ".join(parts.values()) + ", " if parts else f"{self.missing}; "
        if self.activation_bytes is None:
            return f"memory: {found}activations of a forward are not known"
        active = self.activation_bytes * batch_size
        told = f"activations of one forward at batch {batch_size} about {size_text(active)}"
        if self.guided:
            told += f" ({size_text(2 * active)} where guidance doubles the batch)"
        return f"memory: {found}{told}"


def memory_of(model: Model, graph: Graph, qconfigs: Sequence[QuantConfig] = ()) -> Memory:
    """What the model's pipeline weighs; of several configurations the least and the most bytes of the denoiser."""
    try:
        tensors, missing = tensors_of(model), ""
    except ModelError as error:
        tensors, missing = {}, f"bytes of the components are not known, {error}"
    packed: tuple[int, ...] = ()
    names = {weight.name for weight in graph.weights}
    fitting = [
        qconfig for qconfig in qconfigs if names >= set(qconfig.methods)
    ]  # the others are refused later
    if fitting and model.component in tensors:
        sizes = [
            packed_bytes(tensors[model.component], graph, qconfig, model.full_bits)
            for qconfig in fitting
        ]
        packed = (min(sizes), max(sizes))
    try:
        active = activation_bytes(model, graph)
    except (ModelError, TraceError, ValueError):
        active = None
    components = {name: total(found) for name, found in tensors.items()}
    return Memory(model.component, components, missing, packed, active, model.guidance > 1)


def tensors_of(model: Model) -> dict[str, dict[str, Tensor]]:
    """The tensors of every component that has weights and is loaded, by their names.

    Raises:
        ModelError: files are missing.
    """
    if model.file is not None:
        raise ModelError(f"{model.path!r} holds the components in one file")
    return tensors_in(pipeline_folder(model), model.load)


def tensors_in(folder: Path, load: Mapping[str, Any] = {}) -> dict[str, dict[str, Tensor]]:
    """As `tensors_of`, of a pipeline's directory.

    Args:
        folder: of the pipeline.
        load: see `Model`: components that are null are not loaded.

    Raises:
        ModelError: files are missing, damaged, or no safetensors.
    """
    return {name: headers(files) for name, files in pipeline_files(folder, load).items()}


def headers(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of a component's safetensors files, from their headers alone.

    Args:
        files: see `qsdm.denoisers.files.component_files`.

    Raises:
        ModelError: one is damaged, or no safetensors.
    """
    tensors = {}
    for path in files:
        try:
            parts = read_header(path).parts
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{path} is no whole safetensors file ({error}): download it again"
            ) from error
        for name, entry in parts.items():
            start, stop = entry.data_offsets
            tensors[name] = Tensor(math.prod(entry.shape), stop - start)
    return tensors


def total(tensors: Mapping[str, Tensor]) -> int:
    """Bytes."""
    return sum(tensor.size_bytes for tensor in tensors.values())


def packed_bytes(
    tensors: Mapping[str, Tensor], graph: Graph, qconfig: QuantConfig, full_bits: int = 16
) -> int:
    """Bytes of the denoiser under a configuration: the cost model's, and what is never quantized in ``full_bits``."""
    weights = {name for weight in graph.weights for name in (weight.parameter, *weight.ties)}
    rest = sum(tensor.num_values for name, tensor in tensors.items() if name not in weights)
    return cost.size_bytes(graph, qconfig, full_bits) + rest * full_bits // 8


def activation_bytes(model: Model, graph: Graph) -> int:
    """The most bytes that one picture's activations take at once in a forward of the denoiser, in ``model.dtype``.

    More pictures take as many times more. What a layer that decodes a packed weight expands is not in it: see
    `qsdm.cost.peak_bytes`.

    Args:
        graph: of the model; it knows the shapes of the inputs with which it was traced.

    Raises:
        ModelError, ValueError: there is no config, or no such denoiser.
        TraceError: its forward does not run without values.
    """
    import torch

    from qsdm.tracing import activations, inputs, lazy, skeleton

    module = skeleton.build(denoiser_class(model), denoiser_config(model))
    built = inputs.build(module, model.inputs)
    traced = {
        node.name.removeprefix("input."): node.activation
        for node in graph.nodes
        if node.op == Op.INPUT
    }
    places = {id(tensor): place for place, tensor in lazy.tensors(built)}

    def as_traced(tensor: Any) -> Any:
        shape = traced.get(places.get(id(tensor), ""), ())
        return tensor.new_zeros(shape) if len(shape) == tensor.dim() else tensor

    # Skeletons run in float32.
    return (
        activations.peak_bytes(module, lazy.replace(built, as_traced))
        * getattr(torch, model.dtype).itemsize
        // 4
    )


def size_text(size_bytes: float) -> str:
    """Decimal units, three digits: 7.85 MB."""
    value, units = float(size_bytes), iter(("B", "kB", "MB", "GB"))
    unit = next(units)
    while value >= 999.5 and unit != "GB":
        value, unit = value / 1000, next(units)
    return f"{value:,.0f} {unit}" if value >= 999.5 else f"{value:.3g} {unit}"
