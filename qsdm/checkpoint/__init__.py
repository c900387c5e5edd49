"""Checkpoints that are really small: a diffusers pipeline whose denoiser's file holds packed codes.

    DIR/model_index.json, vae/, text_encoder/ ...       as diffusers writes them
    DIR/<component>/config.json                         with a ``quantization_config`` of ours
    DIR/<component>/diffusion_pytorch_model.safetensors
        path.packed.K.codes, .scale, .codebook ...      the K-th input slice of a quantized weight
        everything else                                 biases, norms, weights at full precision, as they were
        metadata                                        the configuration as JSON

`load_quantized` gives the pipeline back; so does diffusers' own ``from_pretrained``, once this module was imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qsdm.graph import Graph, Weight
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.quant.calibration import SAFETENSORS, bytes_of
from qsdm.quant.fitting import fit, layout
from qsdm.quant.packed import PackedLayer, PackedWeight, Slice, replace_layers, slices, state_names
from qsdm.quant.quantized import Quantized
from qsdm.quant.swap import sliced
from qsdm.store import StoreError
from qsdm.store.files import read_json, replace, write_json
from qsdm.store.tensors import ITEM_BYTES, TensorFile

if TYPE_CHECKING:
    import diffusers

SCHEMA = "qsdm/checkpoint/1"
FILE = "diffusion_pytorch_model.safetensors"


class CheckpointError(StoreError):
    """A checkpoint is damaged, truncated or not ours; the message says what to do."""


class QuantMethodName(str, Enum):  # noqa: UP042 (diffusers wants a str with .value)
    """How diffusers names our format in a config."""

    QSDM = "qsdm"


@dataclass(frozen=True, slots=True)
class Contents:
    """What the denoiser's file holds.

    Attributes:
        packed_bytes: codes, scales and codebooks: `qsdm.cost.size_bytes` of the quantized weights at ``full_bits=16``;
            scales and codebooks are stored in 16 bit, whatever the denoiser's precision.
        plain: bytes by name of what is not quantized.
        header_bytes: names, shapes and the configuration.
    """

    packed_bytes: int
    plain: Mapping[str, int]
    header_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.packed_bytes + sum(self.plain.values()) + self.header_bytes

    def __str__(self) -> str:
        return (
            f"{self.total_bytes:,} bytes: packed {self.packed_bytes:,}, "
            f"{len(self.plain)} unquantized tensors {sum(self.plain.values()):,}, header {self.header_bytes:,}"
        )


def save_quantized(
    pipeline: diffusers.DiffusionPipeline,
    component: str,
    graph: Graph,
    qconfig: QuantConfig,
    path: Path,
    quantized: Callable[[str, QuantMethod], Quantized] | None = None,
    full_bits: int = 16,
) -> Contents:
    """Writes the pipeline with its denoiser quantized; ``pipeline`` is not changed.

    Args:
        component: attribute that holds the denoiser, at full precision.
        graph: of the space that the configuration comes from.
        path: a directory; made if need be.
        quantized: (weight's name, method) => its values, as `PackedWeights.quantized`. None: fitted now.
        full_bits: in which a full-precision slice beside a quantized one is kept.

    Raises:
        OutsideSpace, ValueError: configuration and denoiser do not fit together.
        StoreError: it cannot be written.
    """
    path = Path(path)
    pipeline.save_config(path)  # type: ignore[attr-defined]
    for name, part in pipeline.components.items():  # type: ignore[attr-defined]
        if name != component and hasattr(part, "save_pretrained"):
            part.save_pretrained(path / name)
    return save_denoiser(
        getattr(pipeline, component), graph, qconfig, path / component, quantized, full_bits
    )


def save_denoiser(
    denoiser: nn.Module,
    graph: Graph,
    qconfig: QuantConfig,
    path: Path,
    quantized: Callable[[str, QuantMethod], Quantized] | None = None,
    full_bits: int = 16,
) -> Contents:
    """Writes one denoiser into the directory ``path``, weight by weight; see `save_quantized`."""
    if any(isinstance(layer, PackedLayer) for layer in denoiser.modules()):
        raise ValueError(
            "the denoiser is packed already: give the full-precision one, "
            "or save what load_quantized gave by its own save_pretrained"
        )
    plan = slices(graph, qconfig, full_bits)
    names = state_names(plan)
    state = denoiser.state_dict()
    inside = {name for one in plan for name in one.parameters}
    if missing := inside - set(state):
        raise ValueError(
            f"the denoiser has no parameter {min(missing)!r}: it is not the traced one"
        )
    parts = {
        name: (SAFETENSORS[t.dtype], tuple(t.shape))
        for name, t in state.items()
        if name not in inside
    }
    for prefix, one in names.items():
        for part, (dtype, shape) in layout(one.method, one.weight.shape).items():
            parts[f"{prefix}.{part}"] = (SAFETENSORS[dtype], shape)

    def fill(partial: Path) -> None:
        with TensorFile(partial, parts, {"format": "pt", **file_metadata(qconfig)}) as file:
            for name, tensor in state.items():
                if name not in inside:
                    file.write(name, bytes_of(tensor))
            for prefix, one in names.items():
                if quantized is None or one.method.is_full:
                    made = fit(sliced(state[one.weight.parameter], one.weight), one.method)
                else:
                    made = quantized(one.weight.name, one.method)
                for part, stored in made.parts.items():
                    file.write(f"{prefix}.{part}", bytes_of(stored))

    target = Path(path) / FILE
    replace(target, fill)
    config = {key: value for key, value in dict(denoiser.config).items() if not key.startswith("_")}  # type: ignore[arg-type]
    import diffusers

    about = {"_class_name": type(denoiser).__name__, "_diffusers_version": diffusers.__version__}
    described = [dataclasses.asdict(one.weight) | {"method": str(one.method)} for one in plan]
    quantization = {
        "quant_method": QuantMethodName.QSDM.value,
        "version": SCHEMA,
        "denoiser": qconfig.denoiser,
        "weights": described,
        "sha256": _digest(target),
    }
    write_json(Path(path) / "config.json", about | config | {"quantization_config": quantization})
    return contents(path)


def file_metadata(qconfig: QuantConfig) -> dict[str, str]:
    """What the denoiser's file says of itself."""
    return {"qsdm": json.dumps({"schema": SCHEMA, "qconfig": qconfig.to_json()})}


def contents(path: Path) -> Contents:
    """What the denoiser's file in the directory ``path`` holds; of a pipeline's directory, its quantized component.

    Raises:
        CheckpointError: there is no checkpoint of ours.
    """
    file = _component(path) / FILE
    parts, data_bytes = _header(file)
    size = {
        name: math.prod(entry["shape"]) * ITEM_BYTES[entry["dtype"]]
        for name, entry in parts.items()
    }
    plain = {name: number for name, number in size.items() if ".packed." not in name}
    return Contents(
        sum(size.values()) - sum(plain.values()), plain, file.stat().st_size - data_bytes
    )


def load_quantized(
    path: Path, dtype: torch.dtype = torch.float32, check: bool = True, **components: Any
) -> Any:
    """The pipeline (or, of a component's directory, the denoiser) that was saved at ``path``.

    Args:
        dtype: in which it computes. What is packed stays packed.
        check: compare the denoiser's file with its digest first, if it has one (diffusers' own save_pretrained leaves
            it out).
        components: further arguments of from_pretrained.

    Raises:
        CheckpointError: it is damaged, truncated, or not ours.
    """
    import diffusers

    path = Path(path)
    folder = _component(path)
    config = read_json(folder / "config.json")
    about = config["quantization_config"]
    _header(folder / FILE)
    plan_of(about["weights"])
    if check and about.get("sha256", "") not in ("", _digest(folder / FILE)):
        raise CheckpointError(
            f"{folder / FILE} is damaged: its digest is not that of config.json; copy it anew"
        )
    loader: Any = diffusers.DiffusionPipeline
    if not (path / "model_index.json").exists():
        name = config.get("_class_name")
        loader = getattr(diffusers, str(name), None)
        if not (isinstance(loader, type) and issubclass(loader, diffusers.ModelMixin)):
            raise CheckpointError(
                f"{folder / 'config.json'} names no denoiser of diffusers (got {name!r}): copy it anew"
            )
    try:
        return loader.from_pretrained(path, dtype=dtype, use_safetensors=True, **components)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be loaded ({error}): save it again") from error


def plan_of(weights: list[Mapping[str, Any]]) -> list[Slice]:
    """The slices that a ``quantization_config`` lists, in order of their input channels.

    Raises:
        CheckpointError: it lists something else.
    """
    found = []
    try:
        for entry in weights:
            fields = {key: value for key, value in entry.items() if key != "method"}
            weight = Weight(
                **fields | {"shape": tuple(fields["shape"]), "ties": tuple(fields["ties"])}
            )
            if not all(
                isinstance(name, str) for name in (weight.name, weight.parameter, *weight.ties)
            ):
                raise TypeError("a name is no text")
            found.append(Slice(weight, QuantMethod.parse(entry["method"])))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json lists no packed weights of ours ({error}): copy it anew"
        ) from error
    return found


def register() -> None:
    """Teaches diffusers' ``from_pretrained`` our format."""
    from diffusers.quantizers import auto
    from diffusers.quantizers.base import DiffusersQuantizer
    from diffusers.quantizers.quantization_config import QuantizationConfigMixin

    class QsdmConfig(QuantizationConfigMixin):
        """The ``quantization_config`` of a checkpoint."""

        def __init__(
            self, weights: list[Mapping[str, Any]], version: str = SCHEMA, **others: Any
        ) -> None:
            if version != SCHEMA:
                raise CheckpointError(
                    f"wanted a checkpoint of schema {SCHEMA!r} (got {version!r}): save it again"
                )
            self.quant_method = QuantMethodName.QSDM  # type: ignore[assignment]
            self.weights, self.version = weights, version
            self.denoiser = others.get("denoiser", "")

        def to_dict(self) -> dict[str, Any]:
            return {**self.__dict__, "quant_method": QuantMethodName.QSDM.value}

        def metadata(self) -> dict[str, str]:
            """Of the denoiser's file."""
            methods = {
                one.weight.name: one.method
                for one in plan_of(self.weights)
                if not one.method.is_full
            }
            return file_metadata(QuantConfig(self.denoiser, methods))

        def to_diff_dict(self) -> dict[str, Any]:
            return self.to_dict()

    class QsdmQuantizer(DiffusersQuantizer):
        """Puts packed layers into a denoiser without weights, and fills them as they were stored."""

        use_keep_in_fp32_modules = True

        @property
        def is_serializable(self) -> bool:
            return True

        @property
        def is_trainable(self) -> bool:
            return False

        @property
        def is_compileable(self) -> bool:
            return True

        def check_if_quantized_param(
            self, model: Any, param_value: Any, param_name: str, *_: Any, **__: Any
        ) -> bool:
            return ".packed." in param_name

        def create_quantized_param(  # type: ignore[override]
            self,
            model: Any,
            param_value: Any,
            param_name: str,
            target_device: Any,
            state_dict: Any,
            *_: Any,
            **__: Any,
        ) -> None:
            owner, _dot, buffer = param_name.rpartition(".")
            wanted = model.get_submodule(owner)._buffers[buffer]
            stored = state_dict[
                param_name
            ]  # ``param_value`` was cast to the type that the denoiser computes in
            if stored.shape != wanted.shape or stored.dtype != wanted.dtype:
                raise CheckpointError(
                    f"wanted {param_name!r} as {wanted.dtype} of shape {tuple(wanted.shape)} "
                    f"(got {stored.dtype} of shape {tuple(stored.shape)}): config.json is of another checkpoint"
                )
            model.get_submodule(owner)._buffers[buffer] = stored.to(target_device)

        def get_state_dict_and_metadata(
            self, state_dict: dict[str, Any], safe_serialization: bool = False
        ) -> tuple[dict[str, Any], dict[str, Any]]:
            if any(".base_layer." in name for name in state_dict):
                raise CheckpointError(
                    "the denoiser carries adapters, which its file cannot hold: save them apart and unload them "
                    "(save_lora_weights, unload_lora_weights), then save the pipeline"
                )
            return state_dict, self.quantization_config.metadata()  # type: ignore[attr-defined]

        def update_missing_keys(
            self, model: Any, missing_keys: list[str], prefix: str
        ) -> list[str]:
            if missing_keys:  # diffusers would leave them as they are: without values
                raise CheckpointError(
                    f"the checkpoint lacks {missing_keys[0]!r}: it is truncated or of another model"
                )
            return missing_keys

        def _process_model_before_weight_loading(
            self, model: Any, keep_in_fp32_modules: Iterable[str] = (), **kwargs: Any
        ) -> None:
            # The skeleton has the type that it shall compute in, and its layers hand it on to the packed ones.
            plan = plan_of(self.quantization_config.weights)  # type: ignore[attr-defined]
            replace_layers(model, plan, lambda one: PackedWeight(one.method, one.weight.shape))
            for name, layer in model.named_modules():
                if isinstance(layer, PackedLayer) and not set(keep_in_fp32_modules).isdisjoint(
                    name.split(".")
                ):
                    layer.compute_dtype = torch.float32

        def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> None:
            pass

    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QuantMethodName.QSDM.value] = QsdmConfig
    auto.AUTO_QUANTIZER_MAPPING[QuantMethodName.QSDM.value] = QsdmQuantizer


def _component(path: Path) -> Path:
    """The directory of the quantized denoiser.

    Raises:
        CheckpointError: there is none.
    """
    for folder in (Path(path), *_folders(Path(path))):
        config = folder / "config.json"
        if config.is_file():
            try:
                about = (
                    json.loads(config.read_text(encoding="utf-8")).get("quantization_config") or {}
                )
                if about.get("quant_method") == QuantMethodName.QSDM.value and "weights" in about:
                    return folder
            except (ValueError, AttributeError) as error:
                raise CheckpointError(
                    f"{config} cannot be read as JSON ({error}): copy it anew"
                ) from error
    raise CheckpointError(
        f"no quantized checkpoint in {path}: wanted a directory that save_quantized or python -m qsdm.realize wrote"
    )


def _folders(path: Path) -> Iterator[Path]:
    yield from (
        sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else ()
    )


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Parts of a safetensors file by name, and how many bytes of data they take.

    Raises:
        CheckpointError: the file is missing, truncated, or no checkpoint of ours.
    """
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length < file.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        if json.loads(header.pop("__metadata__")["qsdm"])["schema"] != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        data = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if file.stat().st_size != 8 + length + data:
            raise ValueError(f"wanted {8 + length + data} bytes, got {file.stat().st_size}")
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{file} is no whole checkpoint of ours ({error}): copy or save it again"
        ) from error
    return header, data


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


register()
