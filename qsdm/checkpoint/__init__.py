"""Checkpoints that are small on disk: diffusers pipelines whose denoiser is stored as packed codes.

    DIR/model_index.json, vae/, text_encoder/ ...   as diffusers writes them
    DIR/<component>/                                the packed part: `qsdm.checkpoint.format`

`load_quantized` returns the pipeline; so does diffusers' own ``from_pretrained`` once this module
is imported. Adapters, casts and models made from a packed one: docs/checkpoints.md.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qsdm.checkpoint import format
from qsdm.checkpoint.encoders import described, is_encoder, load_encoder, stored_names
from qsdm.checkpoint.format import ENCODERS_FILE, FILE, QUANT_METHOD, CheckpointError
from qsdm.checkpoint.steps import follow_steps
from qsdm.denoisers.classes import saved_without
from qsdm.denoisers.loading import no_weights_made_up
from qsdm.denoisers.model import JOINED, join
from qsdm.graph import Graph, subgraph
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod
from qsdm.quant.calibration import SAFETENSORS
from qsdm.quant.decoding import layout
from qsdm.quant.digests import bytes_of
from qsdm.quant.fitting import fit
from qsdm.quant.packed import PackedLayer
from qsdm.quant.packed_model import slices, state_names, unpack
from qsdm.quant.quantized import Quantized
from qsdm.quant.swap import sliced
from qsdm.store.files import read_json, replace, write_json
from qsdm.store.tensors import TensorFile

if TYPE_CHECKING:
    import diffusers

__all__ = [
    "CheckpointError",
    "Contents",
    "contents",
    "dequantized",
    "follow_steps",
    "load_quantized",
    "save_denoiser",
    "save_quantized",
]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a denoiser's files contain, in bytes.

    Attributes:
        packed_bytes: codes, scales and codebooks: `qsdm.qconfig.cost.size_bytes` of the quantized
            weights at ``full_bits=16``, as scales and codebooks are stored in 16 bits whatever the
            denoiser's precision.
        plain: bytes of everything that is not quantized, by name.
        header_bytes: names, shapes and the configuration.
        bins: of the sampler's steps in which weights have versions of their own; all versions are
            in ``packed_bytes``, equal ones once.
    """

    packed_bytes: int
    plain: Mapping[str, int]
    header_bytes: int
    bins: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Size of the files."""
        return self.packed_bytes + sum(self.plain.values()) + self.header_bytes

    def __str__(self) -> str:
        bins = f" for steps {', '.join(self.bins)} and elsewhere" if self.bins else ""
        return (
            f"{self.total_bytes:,} bytes: packed {self.packed_bytes:,}{bins}, "
            f"{len(self.plain)} unquantized tensors {sum(self.plain.values()):,}, "
            f"header {self.header_bytes:,}"
        )


def save_quantized(
    pipeline: diffusers.DiffusionPipeline,
    component: str | Sequence[str],
    graph: Graph,
    qconfig: QuantConfig,
    path: Path,
    quantized: Callable[[str, QuantMethod], Quantized] | None = None,
    full_bits: int = 16,
) -> Contents:
    """Write a pipeline with its denoiser quantized, or several of its parts.

    Example::

        # A 4-bit copy of the pipeline that `python -m qsdm.trace +model=emoji_unet` traced.
        workspace = qsdm.open("emoji_unet")
        space = workspace.space
        pipeline = load_pipeline(workspace.model)
        save_quantized(pipeline, "unet", space.graph, space.uniform("uaq-4"), Path("small"))

    Args:
        pipeline: in full precision; it is not changed.
        component: the attribute that holds the denoiser; or several parts, in whose joined graph
            names begin with the part's. Those of which the configuration quantizes nothing are
            written as diffusers does.
        graph: of the configuration's space (``space.graph``).
        qconfig: which method each weight gets.
        path: the directory to write to; it is made if need be.
        quantized: (weight's name, method) => its quantized values, such as
            `qsdm.quant.calibrated.PackedWeights.quantized`. None: they are fitted now.
        full_bits: 16 or 32, for a full-precision slice beside a quantized one.

    Returns:
        What the files of all quantized parts contain.

    Raises:
        OutsideSpace: the configuration names a weight that the graph lacks.
        ValueError: configuration and denoiser do not fit together.
        StoreError: it cannot be written.
    """
    path = Path(path)
    pieces = {join(component): (graph, qconfig)}
    if len(names := join(component).split(JOINED)) > 1:
        pieces = _pieces(names, graph, qconfig)
    pipeline.save_config(path)  # type: ignore[attr-defined]
    for name, module in pipeline.components.items():  # type: ignore[attr-defined]
        if name not in pieces and hasattr(module, "save_pretrained"):
            module.save_pretrained(path / name)
    for name, (own, methods) in pieces.items():
        read = quantized
        if quantized is not None and len(names) > 1:
            read = partial(_quantized_of, name, quantized)
        save_denoiser(getattr(pipeline, name), own, methods, path / name, read, full_bits)
    format.write_checksums(path, pieces)
    return contents(path if len(pieces) > 1 else path / next(iter(pieces)))


def _pieces(
    names: Sequence[str], graph: Graph, qconfig: QuantConfig
) -> dict[str, tuple[Graph, QuantConfig]]:
    """Graph and configuration of each part of which something is quantized."""
    if qconfig.steps or qconfig.activations is not None:
        raise ValueError(
            "bins of steps, and bits of all activations, are of one part of a pipeline "
            f"(got {', '.join(names)}): give a configuration of methods alone"
        )
    if unknown := qconfig.weights - {weight.name for weight in graph.weights}:
        raise OutsideSpace(f"the graph of {graph.denoiser!r} has no weight {min(unknown)!r}")
    if qconfig.is_full:
        raise ValueError(f"the configuration quantizes none of {', '.join(names)}: give methods")
    parts = {name: (subgraph(graph, name, graph.denoiser), qconfig.part(name)) for name in names}
    return {name: piece for name, piece in parts.items() if not piece[1].is_full}


def _quantized_of(
    part: str,
    quantized: Callable[[str, QuantMethod], Quantized],
    name: str,
    method: QuantMethod,
) -> Quantized:
    """The values of a weight of a part, by its own name."""
    return quantized(f"{part}.{name}", method)


def save_denoiser(
    denoiser: nn.Module,
    graph: Graph,
    qconfig: QuantConfig,
    path: Path,
    quantized: Callable[[str, QuantMethod], Quantized] | None = None,
    full_bits: int = 16,
) -> Contents:
    """Write a denoiser, weight by weight.

    Args:
        denoiser: in full precision; it is not changed.
        graph: see `save_quantized`.
        qconfig: see `save_quantized`.
        path: the denoiser's directory; it is made if need be.
        quantized: see `save_quantized`.
        full_bits: see `save_quantized`.

    Returns:
        What the denoiser's file contains.

    Raises:
        OutsideSpace: the configuration names a weight that the graph lacks.
        ValueError: the denoiser is packed, or is not the graph's.
        StoreError: it cannot be written.
    """
    if any(isinstance(layer, PackedLayer) for layer in denoiser.modules()):
        raise ValueError(
            "the denoiser is packed already: pass the full-precision one, "
            "or save what load_quantized returned by its own save_pretrained"
        )
    plan = slices(graph, qconfig, full_bits)
    beside_weights = format.beside_weights(graph, qconfig, full_bits)
    names = state_names(plan)
    state, file = denoiser.state_dict(), FILE
    if is_encoder(denoiser):
        state = {name: state[name] for name in sorted(stored_names(denoiser))}
        file = ENCODERS_FILE
    quantized_names = {name for piece in plan for name in piece.parameters}
    if missing := quantized_names - set(state):
        raise ValueError(
            f"the denoiser has no parameter {min(missing)!r}: it is not the traced one"
        )
    parts = {
        name: (SAFETENSORS[t.dtype], tuple(t.shape))
        for name, t in state.items()
        if name not in quantized_names
    }
    for prefix, piece in names.items():
        for part, (dtype, shape) in layout(piece.method, piece.weight.shape).items():
            parts[f"{prefix}.{part}"] = (SAFETENSORS[dtype], shape)

    checksums: dict[str, str] = {}

    def fill(partial: Path) -> None:
        metadata = {"format": "pt", **format.file_metadata(qconfig)}
        with TensorFile(partial, parts, metadata) as written:
            for name, tensor in state.items():
                if name not in quantized_names:
                    written.write(name, bytes_of(tensor))
            for prefix, piece in names.items():
                weight, method = piece.weight, piece.method
                if quantized is None or method.is_full:
                    packed = fit(sliced(state[weight.parameter], weight), method)
                else:
                    packed = quantized(weight.name, method)
                for part, stored in packed.parts.items():
                    written.write(f"{prefix}.{part}", bytes_of(stored))
        checksums.update(written.checksums)

    replace(Path(path) / file, fill)
    (Path(path) / f"{FILE}.index.json").unlink(missing_ok=True)  # diffusers would prefer it to FILE
    if is_encoder(denoiser):
        about = described(denoiser)
    else:
        import diffusers

        options: dict[str, Any] = dict(denoiser.config)  # type: ignore[arg-type]
        about = {key: value for key, value in options.items() if not key.startswith("_")}
        about["_class_name"] = type(denoiser).__name__
        about["_diffusers_version"] = diffusers.__version__
    weights = [dataclasses.asdict(piece.weight) | {"method": str(piece.method)} for piece in plan]
    quantization = {
        "quant_method": QUANT_METHOD,
        "version": format.schema_of(qconfig),
        "denoiser": qconfig.denoiser,
        "weights": weights,
        **beside_weights,
        "checksums": checksums,
    }
    write_json(Path(path) / "config.json", format.seal(about, quantization))
    return contents(path)


def contents(path: Path, variant: str | None = None) -> Contents:
    """What a denoiser's files contain, or those of all packed parts of a pipeline.

    Args:
        path: a pipeline's directory, or its packed component's.
        variant: of the files, as in diffusers' ``save_pretrained(variant="fp16")``.

    Raises:
        CheckpointError: there is no checkpoint of qsdm, or none of this variant.
    """
    size: dict[str, int] = {}
    header_bytes = 0
    bins: tuple[str, ...] = ()
    folders = format.component_folders(Path(path))
    for folder in folders:
        prefix = f"{folder.name}." * (len(folders) > 1)
        for file in format.weight_files(folder, variant):
            header = format.header(file)
            header_bytes += header.start
            bins = format.bins_of(header.metadata)
            for name, entry in header.parts.items():
                size[prefix + name] = entry.data_offsets[1] - entry.data_offsets[0]
    plain = {name: number for name, number in size.items() if ".packed." not in name}
    return Contents(sum(size.values()) - sum(plain.values()), plain, header_bytes, bins)


def load_quantized(
    path: Path,
    dtype: torch.dtype = torch.float32,
    check: bool = True,
    variant: str | None = None,
    **components: Any,
) -> Any:
    """Load a quantized pipeline or denoiser.

    Example::

        pipeline = load_quantized("small")  # what save_quantized wrote
        pipeline("a red apple").images[0]

    Args:
        path: a directory that `save_quantized`, `save_denoiser` or diffusers' ``save_pretrained``
            wrote.
        dtype: the type in which it computes. What is packed stays packed.
        check: whether to compare the other components' files with their checksums first, if they
            have any (diffusers' own ``save_pretrained`` writes none). The packed denoiser is always
            checked.
        variant: of the files, as in diffusers' ``save_pretrained(variant="fp16")``.
        **components: further arguments of ``from_pretrained``.

    Returns:
        A ``DiffusionPipeline`` or, of a component's directory, a ``ModelMixin`` of diffusers or a
        ``PreTrainedModel`` of transformers. One whose weights change with the sampler's steps
        follows the pipeline's scheduler; a component alone has to be told of its pipeline
        (`follow_steps`).

    Raises:
        CheckpointError: it is damaged, truncated, or was not written by qsdm.
    """
    import diffusers

    path = Path(path)
    folders = {
        folder: (read_json(folder / "config.json"), format.weight_files(folder, variant))
        for folder in format.component_folders(path)
    }
    for folder, (config, files) in folders.items():
        _check(folder, config, files, check)
    is_pipeline = (path / "model_index.json").exists()
    if not is_pipeline and path not in folders:
        raise CheckpointError(
            f"{path} is no pipeline, as it has no model_index.json: copy it again, or give one of "
            f"its parts ({', '.join(map(str, folders))})"
        )
    packed = [one for one, (_, files) in folders.items() if files == [one / ENCODERS_FILE]]
    loader: Any = diffusers.DiffusionPipeline
    if not is_pipeline and not packed:
        loader = _class_of(path, folders[path][0])
    for folder, (config, _) in folders.items():
        format.check_config(folder / "config.json", config)
    if check:
        format.check_files(path)
    options = components | ({"variant": variant} if variant else {})
    try:
        if is_pipeline:
            options = saved_without(read_json(path / "model_index.json")) | options
        for folder in packed:
            config, files = folders[folder]
            options = {folder.name: load_encoder(folder, config, files[0], dtype)} | options
        if packed == [path]:
            loaded = options[path.name]
        else:
            with no_weights_made_up(path.name, path):
                loaded = loader.from_pretrained(path, dtype=dtype, use_safetensors=True, **options)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # damaged files of other libraries raise anything
        reason = (str(error) or repr(error)).strip().splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be loaded ({reason}): copy or save it again"
        ) from error
    for name, module in getattr(loaded, "components", {path.name: loaded}).items():
        # A parameter that the files lack diffusers leaves without values, with a warning at most.
        own = module.named_parameters() if isinstance(module, nn.Module) else ()
        for parameter, tensor in own:
            if tensor.is_meta:
                raise CheckpointError(
                    f"the files of {name!r} in {path} lack {parameter!r}: copy or save it again"
                )
    return follow_steps(loaded)


def _check(folder: Path, config: Mapping[str, Any], files: Sequence[Path], digests: bool) -> None:
    """Check what a packed component's files say about themselves.

    Args:
        folder: of the component.
        config: content of its config.json.
        files: of its weights.
        digests: whether to compare a file's digest, if the config has one.

    Raises:
        CheckpointError: something is damaged.
    """
    about = config["quantization_config"]
    for file in files:
        format.header(file)
    format.plan_of(about["weights"])
    digest = about.get("sha256", "")
    if digests and digest and files == [folder / FILE] and digest != _digest(files[0]):
        raise CheckpointError(
            f"{files[0]} is damaged: its digest differs from that in config.json; copy it again"
        )


def _class_of(folder: Path, config: Mapping[str, Any]) -> Any:
    """The class of diffusers that a component's config.json names.

    Raises:
        CheckpointError: there is none.
    """
    import diffusers

    name = config.get("_class_name")
    loader = getattr(diffusers, str(name), None)
    if not (isinstance(loader, type) and issubclass(loader, diffusers.ModelMixin)):
        raise CheckpointError(
            f"{folder / 'config.json'} names no denoiser of diffusers (got {name!r}): copy it again"
        )
    return loader


def dequantized(denoiser: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A plain copy of a packed denoiser: ordinary layers with the decoded values, at full size.

    For what a packed denoiser cannot do: merge adapters, be trained, give its weights to another
    model. diffusers' own ``denoiser.dequantize()`` does the same in place.

    Args:
        denoiser: with packed layers, from `load_quantized` or `qsdm.quant.packed_model.pack`; it is
            not changed. Adapters on it are copied too.
        dtype: of all parameters. None: those in which it computes.

    Returns:
        A module of the same class. Its ``save_pretrained`` writes a plain checkpoint.

    Raises:
        ValueError: it has no packed layer, or weights that change with the sampler's steps.
    """
    if not any(isinstance(layer, PackedLayer) for layer in denoiser.modules()):
        raise ValueError(
            f"wanted a denoiser with packed layers (got a {type(denoiser).__name__} without any): "
            "it is plain already, or the denoiser is another component of the pipeline"
        )
    plain = copy.deepcopy(denoiser)
    if dtype is not None:
        nn.Module.to(plain, dtype)  # so that it is decoded directly to it
    quantizer = getattr(plain, "hf_quantizer", None)
    return unpack(plain) if quantizer is None else quantizer.dequantize(plain)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _register() -> None:
    from qsdm.checkpoint.quantizer import register

    register()


_register()
