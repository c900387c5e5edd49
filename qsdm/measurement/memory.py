"""Memory of a whole pipeline: its components, by their files' headers, and a forward's activations.

No weights are loaded. Sizes are those stored on disk; loading in another dtype changes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsdm import text
from qsdm.denoisers import Model, ModelError, denoiser_class, denoiser_config, is_denoiser
from qsdm.denoisers.files import pipeline_files, pipeline_folder
from qsdm.denoisers.loading import own_types
from qsdm.denoisers.model import is_denoisers_name
from qsdm.denoisers.narrow import kept_in
from qsdm.graph import Graph, Op, subgraph
from qsdm.qconfig import QuantConfig, cost
from qsdm.store.header import read_header
from qsdm.tracing import TraceError


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        num_values: number of its values.
        size_bytes: as stored.
    """

    num_values: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a pipeline.

    Attributes:
        quantized: names of the components that are quantized, one as a rule.
        components: bytes by name, as stored; empty if there are no files.
        missing: why there are no files, one sentence; empty if there are.
        packed_bytes: of the denoiser under some configurations; empty if unknown.
        activation_bytes: the most at once, for one picture in one forward of the denoiser; None if
            unknown.
        guided: pictures may be drawn with classifier-free guidance.
        is_stepped: a packed denoiser holds versions of weights for several bins of steps.
    """

    quantized: tuple[str, ...]
    components: Mapping[str, int]
    missing: str = ""
    packed_bytes: tuple[int, ...] = ()
    activation_bytes: int | None = None
    guided: bool = False
    is_stepped: bool = False

    @property
    def label(self) -> str:
        """What is quantized is called so: the denoiser, or the components' own names."""
        names = [name for name in self.quantized if not is_denoisers_name(name)]
        is_with_denoiser = len(names) < len(self.quantized)
        return " and ".join(["denoiser"] * is_with_denoiser + names)

    @property
    def groups(self) -> dict[str, int]:
        """Bytes of what is quantized, the text encoders together, and every other component."""
        own = [self.components[name] for name in self.quantized if name in self.components]
        sizes = {self.label: sum(own)} if own else {}
        for name, size in sorted(
            self.components.items(), key=lambda pair: not pair[0].startswith("text_encoder")
        ):
            if name not in self.quantized:
                group = "text encoders" if name.startswith("text_encoder") else name
                sizes[group] = sizes.get(group, 0) + size
        return sizes

    def line(self, batch_size: int = 1) -> str:
        """Describe it in one line.

        Args:
            batch_size: pictures of a forward, whose activations are counted.
        """
        parts = {name: f"{name} {text.size(size)}" for name, size in self.groups.items()}
        if self.label in parts and self.packed_bytes:
            sizes = " to ".join(dict.fromkeys(map(text.size, self.packed_bytes)))
            stepped = " for all bins of steps" if self.is_stepped else ""
            parts[self.label] += f" (packed {sizes}{stepped})"
        files = ", ".join(parts.values()) + ", " if parts else f"{self.missing}; "
        if self.activation_bytes is None:
            return f"memory: {files}activations of a forward are not known"
        size = self.activation_bytes * batch_size
        activations = f"activations of one forward at batch {batch_size} about {text.size(size)}"
        if self.guided:
            activations += f" ({text.size(2 * size)} where guidance doubles the batch)"
        return f"memory: {files}{activations}"


def memory_of(model: Model, graph: Graph, qconfigs: Sequence[QuantConfig] = ()) -> Memory:
    """Estimate the memory of a model's pipeline.

    Args:
        model: whose files are read.
        graph: of its denoiser.
        qconfigs: for the least and the most bytes of the packed denoiser.

    Returns:
        What is known of it.
    """
    try:
        tensors, missing = tensors_of(model), ""
    except ModelError as error:
        tensors, missing = {}, f"bytes of the components are not known, {error}"
    packed: tuple[int, ...] = ()
    names = {weight.name for weight in graph.weights}
    # Configurations of other weights are refused later.
    fitting = [qconfig for qconfig in qconfigs if names >= qconfig.weights]
    if fitting and tensors.keys() >= set(model.components):
        own = quantized_tensors(tensors, graph, model.components)
        sizes = [packed_bytes(own, graph, qconfig, model.full_bits) for qconfig in fitting]
        packed = (min(sizes), max(sizes))
    try:
        active = activation_bytes(model, graph)
    except (ModelError, TraceError, ValueError):
        active = None
    components = {name: total(of_one) for name, of_one in tensors.items()}
    stepped = bool(packed) and any(qconfig.steps for qconfig in fitting)
    guided = model.guidance > 1
    return Memory(model.components, components, missing, packed, active, guided, stepped)


def quantized_tensors(
    tensors: Mapping[str, Mapping[str, Tensor]], graph: Graph, components: Sequence[str]
) -> dict[str, Tensor]:
    """List the tensors of what is quantized, under the names that a graph has for parameters.

    Args:
        tensors: by component and name.
        graph: of the components.
        components: names of one or of several; those without tensors are left out.

    Returns:
        Tensors by name.
    """
    weights = {name for weight in graph.weights for name in (weight.parameter, *weight.ties)}
    result: dict[str, Tensor] = {}
    for component in components:
        prefix = f"{component}." * (len(components) > 1)
        own = {f"{prefix}{name}": tensor for name, tensor in tensors.get(component, {}).items()}
        if not weights & own.keys():  # transformers leaves a prefix away that files have
            own = {
                f"{prefix}{name.removeprefix(prefix).partition('.')[2]}": tensor
                for name, tensor in own.items()
            }
        result |= own
    return result


def tensors_of(model: Model) -> dict[str, dict[str, Tensor]]:
    """List the tensors of every component that has weights and is loaded.

    Args:
        model: whose files are read.

    Returns:
        Tensors by component and name.

    Raises:
        ModelError: files are missing.
    """
    if model.file is not None:
        raise ModelError(f"{model.path!r} holds the components in one file")
    return tensors_in(pipeline_folder(model), model.load)


def tensors_in(folder: Path, load: Mapping[str, Any] = {}) -> dict[str, dict[str, Tensor]]:
    """List the tensors in a pipeline's directory, as `tensors_of` does.

    Args:
        folder: of the pipeline.
        load: see `Model`; components that are null are not loaded.

    Returns:
        Tensors by component and name.

    Raises:
        ModelError: files are missing, damaged, or no safetensors.
    """
    return {name: headers(files) for name, files in pipeline_files(folder, load).items()}


def headers(files: Sequence[Path]) -> dict[str, Tensor]:
    """List the tensors of a component's safetensors files, from their headers alone.

    Args:
        files: see `qsdm.denoisers.files.component_files`.

    Returns:
        Tensors by name.

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
    """Sum up bytes.

    Args:
        tensors: by name.
    """
    return sum(tensor.size_bytes for tensor in tensors.values())


def loaded_bytes(model: Model) -> int:
    """Compute what a worker takes for a pipeline's weights, see `qsdm.denoisers.load_pipeline`.

    Args:
        model: whose files are read.

    Returns:
        Bytes; 0 if there are no files.
    """
    try:
        components = tensors_of(model)
    except ModelError:
        return 0
    own = 4 if kept_in(model) == "float32" else 2
    return sum(
        (own if name in own_types(model) else 4) * tensor.num_values
        for name, tensors in components.items()
        for tensor in tensors.values()
    )


def checkpoint_bytes(model: Model, graph: Graph, qconfigs: Sequence[QuantConfig]) -> int:
    """Compute what the smallest checkpoint of some configurations takes on disk.

    Args:
        model: whose other components are written beside the packed denoiser.
        graph: of the denoiser.
        qconfigs: the configurations, at least one.

    Returns:
        Bytes; 0 if there are no files from which to tell.
    """
    try:
        components = tensors_of(model)
    except ModelError:
        return 0
    bits, own = model.full_bits, quantized_tensors(components, graph, model.components)
    for name in model.components:
        components.pop(name, None)
    others = sum(tensor.num_values for part in components.values() for tensor in part.values())
    packed = min(packed_bytes(own, graph, qconfig, bits) for qconfig in qconfigs)
    return packed + others * bits // 8


def packed_bytes(
    tensors: Mapping[str, Tensor], graph: Graph, qconfig: QuantConfig, full_bits: int = 16
) -> int:
    """Compute the bytes of the denoiser under a configuration.

    Args:
        tensors: of the denoiser, see `quantized_tensors`.
        graph: of the denoiser.
        qconfig: the configuration.
        full_bits: bits of a value that is never quantized.

    Returns:
        Bytes by the cost model, and those of what is never quantized.
    """
    weights = {name for weight in graph.weights for name in (weight.parameter, *weight.ties)}
    rest = sum(tensor.num_values for name, tensor in tensors.items() if name not in weights)
    return cost.size_bytes(graph, qconfig, full_bits) + rest * full_bits // 8


def activation_bytes(model: Model, graph: Graph) -> int:
    """Compute the most bytes that one picture's activations take at once in a forward.

    They are in ``model.dtype``. More pictures take as many times more. What a layer expands when it
    decodes a packed weight is not included: see `qsdm.qconfig.cost.peak_bytes`.

    Args:
        model: whose denoiser runs.
        graph: of the model; it knows the shapes of the inputs with which it was traced.

    Returns:
        Bytes.

    Raises:
        ModelError, ValueError: there is no config, or no such denoiser.
        TraceError: its forward does not run without values.
    """
    import torch

    from qsdm.tracing import activations, inputs, lazy, skeleton

    if len(model.components) > 1:  # those of the denoiser are the largest
        if len(model.denoisers) != 1:
            raise TraceError(f"no part of {model.name!r} is the denoiser alone")
        (own,) = (one for one in model.parts if one.denoisers)
        return activation_bytes(own, subgraph(graph, own.component, own.name))
    if not is_denoiser(cls := denoiser_class(model)):
        raise TraceError(f"the inputs of a {cls.__name__} are known to its pipeline alone")
    module = skeleton.build(cls, denoiser_config(model))
    built = inputs.build(module, model.inputs)
    traced = {
        node.name.removeprefix("input."): node.activation
        for node in graph.nodes
        if node.op == Op.INPUT
    }
    names = {id(tensor): name for name, tensor in lazy.tensors(built)}

    def as_traced(tensor: Any) -> Any:
        shape = traced.get(names.get(id(tensor), ""), ())
        return tensor.new_zeros(shape) if len(shape) == tensor.dim() else tensor

    # Skeletons run in float32.
    return (
        activations.peak_bytes(module, lazy.replace(built, as_traced))
        * getattr(torch, model.dtype).itemsize
        // 4
    )
