"""Published checkpoints: which type each tensor has, by the file's header; no weight is read.

GGUF files tell a type per tensor. Comfy's safetensors name the format of each quantized layer in
their metadata (``_quantization_metadata``) or in a small tensor of JSON beside it
(``LAYER.comfy_quant``); all other layers keep the type of their tensor. Checkpoints of SDNQ,
torchao and bitsandbytes have a config, which `qsdm.recipe.read` reads.

References:
    ggml-org/llama.cpp: the ``gguf`` package, ``GGUFReader``.
    comfyanonymous/ComfyUI (commit 7f75cc2): QUANTIZATION.md, "Checkpoint Format".
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsdm.graph import Graph
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.quant.nf4 import NF4_G64
from qsdm.recipes import Decision, Layer, RecipeError, affine, assemble, distance, layers
from qsdm.recipes.gguf import FULL, TYPES
from qsdm.store.header import Header, read_header

PREFIXES = ("", "model.diffusion_model.", "diffusion_model.", "unet.", "transformer.", "model.")
"""What files put before the denoiser's own names."""

METADATA = "_quantization_metadata"
MARK = ".comfy_quant"
SCALES = ("weight_scale", "scale_weight")
"""How the names of a layer's scales begin in files of Comfy."""

_MAX_MARK = 1 << 16  # bytes of JSON about one layer
_FP8, _NF4 = QuantMethod("fp8_e4m3", 8), QuantMethod(NF4_G64.name, 4)
COMFY: dict[str, tuple[QuantMethod, str]] = {
    "float8_e4m3fn": (_FP8, "with one scale for the tensor there"),
    "float8_e5m2": (_FP8, "with two bits of mantissa there"),
    "float8_e4m3fn_blockwise": (_FP8, "with a scale per block there"),
    "mxfp8": (_FP8, "with a power of two as the scale of 32 values there"),
    "int8_tensorwise": (affine(8), "with one scale for the tensor there"),
    "int8_blockwise": (affine(8, 128), "with a scale per square block there"),
    "nvfp4": (_NF4, "with the levels of 4-bit floats and groups of 16 there"),
    "mxfp4": (_NF4, "with the levels of 4-bit floats and groups of 32 there"),
}
"""Nearest method to a format of Comfy, and how the format differs."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """How a file stores one parameter.

    Attributes:
        kind: its type, in the file's words.
        method: the nearest method; None for full precision.
        shape: of the parameter.
        size_bytes: with its scales.
        differs: how the type differs from the method; empty if it does not.
    """

    kind: str
    method: QuantMethod | None
    shape: tuple[int, ...]
    size_bytes: int
    differs: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What the header of a published file says.

    Attributes:
        format: GGUF or Comfy.
        architecture: as the file names it; empty if it does not.
        tensors: by name of the parameter in the file.
    """

    format: str
    architecture: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Published:
    """A published recipe, weight by weight.

    Attributes:
        qconfig: nearest methods.
        kinds: by weight, the type in the recipe's own words.
        size_bytes: by weight, as stored there.
        notes: one sentence for each thing that is only approximately the same.
    """

    qconfig: QuantConfig
    kinds: Mapping[str, str]
    size_bytes: Mapping[str, float]
    notes: tuple[str, ...]


def read_gguf(path: Path) -> Checkpoint:
    """Read the header of a GGUF file.

    Args:
        path: of the file.

    Returns:
        Type and shape of each tensor.

    Raises:
        RecipeError: it cannot be read, or has a type that no method is near.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise RecipeError(
            "the header of a GGUF file is read by the gguf package: pip install gguf"
        ) from error
    try:
        reader = GGUFReader(path)
        field = reader.fields.get("general.architecture")
        architecture = "" if field is None else str(field.contents())
    except (OSError, ValueError, KeyError, IndexError, OverflowError, TypeError) as error:
        raise RecipeError(
            f"{path} is not a whole GGUF file ({error}): download it again"
        ) from error
    spelled = {name.lower(): name for name in (*FULL, *TYPES)}
    tensors = {}
    for entry in reader.tensors:
        shape = tuple(int(size) for size in reversed(entry.shape))
        kind = spelled.get(entry.tensor_type.name.lower())
        if kind is None:
            if len(shape) < 2:
                continue
            raise RecipeError(
                f"{path}: {entry.name} is stored as {entry.tensor_type.name}, which no method of "
                f"qsdm is near (there are {', '.join(spelled.values())})"
            )
        method, _, differs = TYPES.get(kind, (None, 0, ""))
        tensors[entry.name] = Tensor(kind, method, shape, int(entry.n_bytes), differs)
    return Checkpoint("GGUF", architecture, tensors)


def read_comfy(path: Path) -> Checkpoint | None:
    """Read the header of a safetensors file.

    Args:
        path: of the file.

    Returns:
        Type and shape of each tensor; None if no tensor is quantized in a way that it names.

    Raises:
        RecipeError: it is damaged, or names a format that no method is near.
    """
    try:
        header = read_header(path, whole=False)
        formats = _formats(path, header)
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path} has no readable header ({error}): download it again") from error
    of_scales: Counter[str] = Counter()  # bytes by layer
    for name, entry in header.parts.items():
        layer, _, part = name.rpartition(".")
        if part.startswith(SCALES):
            of_scales[layer] += entry.data_offsets[1] - entry.data_offsets[0]
    tensors = {}
    for name, entry in header.parts.items():
        layer = name.removesuffix(".weight")
        if layer == name or len(entry.shape) < 2:
            continue
        kind, shape = formats.get(layer), entry.shape
        if kind is None and entry.dtype.startswith("F8"):
            kind = "float8_e5m2" if "E5M2" in entry.dtype else "float8_e4m3fn"
        if kind is not None and kind not in COMFY:
            raise RecipeError(
                f"{path}: {layer} has the format {kind!r}, which no method of qsdm is near "
                f"(there are {', '.join(COMFY)})"
            )
        method, differs = COMFY[kind] if kind is not None else (None, "")
        if method is not None and method.bits == 4 and entry.dtype in ("U8", "I8"):
            shape = (*shape[:-1], 2 * shape[-1])  # two values in a byte
        size = entry.data_offsets[1] - entry.data_offsets[0] + of_scales[layer]
        tensors[name] = Tensor(kind or entry.dtype.lower(), method, shape, size, differs)
    if all(tensor.method is None for tensor in tensors.values()):
        return None
    return Checkpoint("Comfy", "", tensors)


def _formats(path: Path, header: Header) -> dict[str, str]:
    """Read each layer's format from the metadata and from small tensors of JSON.

    Raises:
        ValueError: they hold no such JSON.
    """
    about: dict[str, Any] = {}
    if METADATA in header.metadata:
        content = json.loads(header.metadata[METADATA])
        about |= content.get("layers", {}) if isinstance(content, dict) else {}
    with path.open("rb") as file:
        for name, entry in header.parts.items():
            if not name.endswith(MARK):
                continue
            start, stop = entry.data_offsets
            if stop - start > _MAX_MARK:
                raise ValueError(f"{name} is too long for a layer's format")
            file.seek(header.start + start)
            about[name.removesuffix(MARK)] = json.loads(file.read(stop - start))
    for layer, value in about.items():
        if not isinstance(value, dict) or not isinstance(value.get("format"), str):
            raise ValueError(f"wanted a mapping with a format for {layer!r} (got {value!r})")
    return {layer: value["format"] for layer, value in about.items()}


def own_names(graph: Graph, names: Iterable[str]) -> dict[str, str]:
    """Find the parameters of a graph among a file's names, behind the best prefix.

    Args:
        graph: of the denoiser.
        names: of the file.

    Returns:
        The file's name by parameter; empty if none matches.
    """
    present, parameters = set(names), _layer_by_parameter(graph)
    matches = [
        {name: prefix + name for name in parameters if prefix + name in present}
        for prefix in PREFIXES
    ]
    return max(matches, key=len)


def _layer_by_parameter(graph: Graph) -> dict[str, Layer]:
    return {name: layer for layer in layers(graph) for name in layer.parameters}


def read_checkpoint(
    graph: Graph,
    checkpoint: Checkpoint,
    path: Path,
    original: Callable[[Mapping[str, tuple[int, ...]]], dict[str, str]] | None = None,
) -> Published:
    """Read the types of a file's tensors as a configuration.

    Args:
        graph: of the denoiser.
        checkpoint: what the file's header says.
        path: of the file, for messages.
        original: finds the tensor of each parameter in a file of the authors' own layout, by name
            and shape; None if it has no such layout.

    Returns:
        The recipe.

    Raises:
        RecipeError: the file is of another denoiser, or of other sizes.
    """
    tensors = checkpoint.tensors
    source = _sources(graph, checkpoint, path, original)
    _check_sources(graph, tensors, source, path)

    def decide(name: str, _layer: Layer) -> Decision:
        tensor = tensors[source[name]]
        if tensor.method is None:
            return None, []
        how = f", {tensor.differs}" if tensor.differs else ""
        return tensor.method, [f"{tensor.kind} is taken as {tensor.method}{how}"]

    result = assemble(graph, decide)
    kinds, sizes = {}, {}
    for layer in layers(graph):
        stored = [tensors[source[name]] for name in layer.parameters]
        per_value = sum(one.size_bytes / math.prod(one.shape) for one in stored) / len(stored)
        for weight in layer.weights:
            kinds[weight.name] = stored[0].kind
            sizes[weight.name] = per_value * weight.numel
    return Published(result.qconfig, kinds, sizes, result.notes)


def _sources(
    graph: Graph,
    checkpoint: Checkpoint,
    path: Path,
    original: Callable[[Mapping[str, tuple[int, ...]]], dict[str, str]] | None,
) -> dict[str, str]:
    """Find the tensor of each parameter, by diffusers' names or by the authors' own.

    Raises:
        RecipeError: fewer than half of the parameters have one.
    """
    enough = len(_layer_by_parameter(graph)) / 2
    source = own_names(graph, checkpoint.tensors)
    if len(source) < enough and original is not None:
        source = original({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    if len(source) < enough:
        kind = f" of the architecture {checkpoint.architecture!r}" * bool(checkpoint.architecture)
        raise RecipeError(
            f"{path} is a {checkpoint.format} file{kind}, not of {graph.denoiser!r}: "
            f"{distance(graph, checkpoint.tensors)}"
        )
    return source


def _check_sources(
    graph: Graph, tensors: Mapping[str, Tensor], source: Mapping[str, str], path: Path
) -> None:
    """Refuse a file that lacks parameters, or has them in sizes that cannot hold the graph's.

    Raises:
        RecipeError: it does.
    """
    layer_of = _layer_by_parameter(graph)
    missing = [name for name in layer_of if name not in source]
    misfits = [
        name
        for name, origin in source.items()  # a tensor may hold several parameters, side by side
        if math.prod(tensors[origin].shape) % math.prod(layer_of[name].shape)
    ]
    if missing:
        problem = f"lacks {len(missing)} of the {len(layer_of)} weights"
        first, theirs = missing[0], ""
    elif misfits:
        problem = f"has other sizes in {len(misfits)} of the {len(layer_of)} weights"
        first = misfits[0]
        theirs = f" {list(tensors[source[first]].shape)} there,"
    else:
        return
    raise RecipeError(
        f"{path} {problem} of {graph.denoiser!r} (the first is {first},{theirs} "
        f"{list(layer_of[first].shape)} here): give a file of this denoiser"
    )
