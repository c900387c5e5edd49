"""diffusers' ``from_pretrained`` and ``save_pretrained`` of a packed denoiser.

Methods of `DiffusersQuantizer` keep its parameters' names, as diffusers passes them by keyword.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import nn

from qsdm.checkpoint.format import (
    QUANT_METHOD,
    SCHEMA,
    SCHEMA_OF_STEPS,
    SCHEMAS,
    CheckpointError,
    file_metadata,
    plan_of,
)
from qsdm.checkpoint.steps import Steps, attach
from qsdm.qconfig import QuantConfig
from qsdm.quant.activations import Rounding
from qsdm.quant.digests import bytes_of
from qsdm.quant.packed import PackedLayer, PackedWeight
from qsdm.quant.packed_model import replace_layers, state_names, unpack, versions
from qsdm.store.checksum import checksum, is_whole, with_checksum


class QuantMethodName(str, Enum):  # noqa: UP042 (diffusers wants a str with .value)
    """The name of our format in a config of diffusers."""

    QSDM = QUANT_METHOD


class QsdmConfig(QuantizationConfigMixin):
    """The ``quantization_config`` of a checkpoint.

    Args:
        weights: the packed slices, as `qsdm.checkpoint.format.plan_of` reads them.
        version: the schema.
        **others: further fields; ``denoiser``, ``checksums`` (by name of a tensor) and those of
            `qsdm.checkpoint.format.beside_weights` are kept.

    Raises:
        CheckpointError: it is damaged or of another version.
    """

    def __init__(
        self, weights: list[Mapping[str, Any]], version: str = SCHEMA, **others: Any
    ) -> None:
        if version not in SCHEMAS:
            raise CheckpointError(
                f"wanted a checkpoint of schema {SCHEMA!r} (got {version!r}): save it again"
            )
        if not is_whole({"weights": weights, "version": version, **others}):
            raise CheckpointError(
                "the quantization_config in config.json is damaged: copy it again"
            )
        self.quant_method = QuantMethodName.QSDM  # type: ignore[assignment]
        self.weights, self.version = weights, version
        self.denoiser = others.get("denoiser", "")
        self.checksums: dict[str, str] = others.get("checksums", {})
        if version == SCHEMA_OF_STEPS:
            self.qconfig: dict[str, Any] = others["qconfig"]
            self.full_bits: int = others["full_bits"]
            self.rounded: Any = others["rounded"]
        elif version != SCHEMA:
            self.activations: int | None = others["activations"]
            self.inputs: dict[str, int] = others["inputs"]
            self.rounded = others["rounded"]

    def to_dict(self) -> dict[str, Any]:
        """The config of a checkpoint that diffusers saves again, in which the rest may be cast."""
        packed = {name: text for name, text in self.checksums.items() if ".packed." in name}
        return with_checksum({**self.__dict__, "quant_method": QUANT_METHOD, "checksums": packed})

    def to_diff_dict(self) -> dict[str, Any]:
        """All of it, as nothing has a default."""
        return self.to_dict()

    @property
    def stepped(self) -> QuantConfig | None:
        """The configuration, if it has bins of steps.

        Raises:
            CheckpointError: it is malformed.
        """
        if self.version != SCHEMA_OF_STEPS:
            return None
        try:
            qconfig = QuantConfig.from_json(self.qconfig)
        except ValueError as error:
            raise CheckpointError(
                f"the configuration in config.json is malformed ({error}): copy it again"
            ) from error
        if not isinstance(self.rounded, list) or len(self.rounded) != len(qconfig.parts):
            raise CheckpointError(
                f"wanted the rounded inputs of {len(qconfig.parts)} parts of the steps in "
                f"config.json (got {self.rounded!r}): copy it again"
            )
        return qconfig

    def metadata(self) -> dict[str, str]:
        """The metadata of the denoiser's file."""
        if (stepped := self.stepped) is not None:
            return file_metadata(stepped)
        methods = {
            piece.weight.name: piece.method
            for piece in plan_of(self.weights)
            if not piece.method.is_full
        }
        if self.version == SCHEMA:
            return file_metadata(QuantConfig(self.denoiser, methods))
        return file_metadata(QuantConfig(self.denoiser, methods, self.activations, self.inputs))


class QsdmQuantizer(DiffusersQuantizer):
    """Gives a denoiser without weights packed layers, and fills them with what was stored."""

    use_keep_in_fp32_modules = True

    @property
    def is_serializable(self) -> bool:
        """``save_pretrained`` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Codes have no gradient."""
        return False

    @property
    def is_compileable(self) -> bool:
        """torch.compile works."""
        return True

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Compare the tensors of a file with the checksums in config.json, if there are any.

        They are hashed at once, not on threads: with a thousand small tensors, waiting for the
        interpreter's lock costs more than hashing.

        Args:
            state_dict: tensors by name.

        Returns:
            The same.

        Raises:
            CheckpointError: a tensor was changed after it was saved.
        """
        checksums = self.quantization_config.checksums  # type: ignore[attr-defined]
        for name, tensor in state_dict.items():
            if name in checksums and checksum(bytes_of(tensor)) != checksums[name]:
                raise CheckpointError(
                    f"the tensor {name!r} was changed after it was saved: "
                    "copy or save the checkpoint again"
                )
        return state_dict

    def check_if_quantized_param(
        self,
        model: nn.Module,  # noqa: ARG002
        param_value: Any,  # noqa: ARG002
        param_name: str,
        *_: Any,
        **__: Any,
    ) -> bool:
        """Whether a tensor is a part of a packed weight.

        Args:
            model: the denoiser.
            param_value: its value.
            param_name: its name.
        """
        return ".packed." in param_name

    def create_quantized_param(  # type: ignore[override]
        self,
        model: nn.Module,
        param_value: Any,  # noqa: ARG002
        param_name: str,
        target_device: Any,
        state_dict: Mapping[str, torch.Tensor],
        *_: Any,
        **__: Any,
    ) -> None:
        """Fill a part of a packed weight.

        Args:
            model: the denoiser.
            param_value: its value, cast to the type in which the denoiser computes.
            param_name: its name.
            target_device: where it goes.
            state_dict: tensors by name, as they were stored.

        Raises:
            CheckpointError: config.json describes another part.
        """
        owner, _dot, buffer = param_name.rpartition(".")
        try:
            expected = model.get_submodule(owner)._buffers[buffer]
        except (AttributeError, KeyError):
            expected = None
        stored = state_dict[param_name]
        if expected is None or (stored.shape, stored.dtype) != (expected.shape, expected.dtype):
            described = (
                "nothing" if expected is None else f"{expected.dtype} {tuple(expected.shape)}"
            )
            raise CheckpointError(
                f"config.json describes {described} at {param_name!r}, but the file has "
                f"{stored.dtype} {tuple(stored.shape)}: config.json is of another checkpoint"
            )
        model.get_submodule(owner)._buffers[buffer] = stored.to(target_device)

    def get_state_dict_and_metadata(
        self,
        state_dict: dict[str, Any],
        safe_serialization: bool = False,  # noqa: ARG002
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What ``save_pretrained`` writes.

        Args:
            state_dict: of the denoiser.
            safe_serialization: whether to write safetensors.

        Returns:
            The state dict and the metadata of the file.

        Raises:
            CheckpointError: it is not what was loaded: it has adapters, changed codes, or layers
                that are no longer packed.
        """
        if any(".base_layer." in name for name in state_dict):
            raise CheckpointError(
                "the denoiser carries adapters, which its file cannot contain: save them "
                "separately and unload them (save_lora_weights, unload_lora_weights), then save "
                "the pipeline"
            )
        config = self.quantization_config
        for name, text in config.checksums.items():  # type: ignore[attr-defined]
            # config.json has been written already, with the checksums of what was loaded
            packed = ".packed." in name and name in state_dict
            if packed and checksum(bytes_of(state_dict[name])) != text:
                raise CheckpointError(
                    f"the packed values {name!r} were changed after they were loaded: save "
                    "qsdm.checkpoint.dequantized(denoiser), which is not packed"
                )
        for prefix in state_names(plan_of(config.weights)):  # type: ignore[attr-defined]
            if f"{prefix}.codes" not in state_dict:
                raise CheckpointError(
                    f"the layer {prefix.partition('.packed.')[0]!r} is no longer packed, as after "
                    "a Control LoRA that widened it: load the checkpoint again and save that, or "
                    "save qsdm.checkpoint.dequantized(denoiser), which is not packed"
                )
        return state_dict, config.metadata()  # type: ignore[attr-defined]

    def update_missing_keys(
        self,
        model: nn.Module,  # noqa: ARG002
        missing_keys: list[str],
        prefix: str,  # noqa: ARG002
    ) -> list[str]:
        """Refuse a checkpoint that lacks a tensor.

        Args:
            model: the denoiser.
            missing_keys: names that the files lack.
            prefix: of the denoiser's names in the files.

        Returns:
            ``missing_keys``, which is empty.

        Raises:
            CheckpointError: it is not empty.
        """
        if missing_keys:  # diffusers would leave these parameters without values
            raise CheckpointError(
                f"the checkpoint lacks {missing_keys[0]!r}: it is truncated or of another model"
            )
        return missing_keys

    def _process_model_before_weight_loading(
        self, model: nn.Module, keep_in_fp32_modules: Iterable[str] = (), **_: Any
    ) -> None:
        # The packed layers take the type in which they compute from the layers they replace.
        about: Any = self.quantization_config
        plan, qconfig = plan_of(about.weights), about.stepped
        own = {} if qconfig is None else versions(plan, qconfig, about.full_bits)
        replace_layers(
            model, plan, lambda piece: PackedWeight(piece.method, piece.weight.shape), own
        )
        for name, layer in model.named_modules():
            if isinstance(layer, PackedLayer) and not set(keep_in_fp32_modules).isdisjoint(
                name.split(".")
            ):
                layer.compute_dtype = torch.float32

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> None:
        # diffusers refuses ``.to(dtype)``, and with it IP-Adapters, for quantized models. Packed
        # layers can be cast: codes stay, and weights are decoded to ``dtype``.
        model.is_quantized = False  # type: ignore[assignment]
        for layer in model.modules():
            if isinstance(layer, PackedLayer):
                layer.like = layer.like.to(next(layer.packed.buffers()).device)
        about: Any = self.quantization_config
        if about.version != SCHEMA:
            try:
                if (qconfig := about.stepped) is not None:
                    layers = [m for m in model.modules() if isinstance(m, PackedLayer)]
                    num_stepped = sum(layer.is_stepped for layer in layers)
                    attach(model, Steps(qconfig, about.rounded, num_stepped))
                else:
                    Rounding(model, about.rounded, about.activations is not None)
            except ValueError as error:
                raise CheckpointError(
                    f"config.json rounds what the denoiser lacks ({error}): copy it again"
                ) from error

    def _dequantize(self, model: nn.Module) -> nn.Module:
        unpack(model)
        model._internal_dict = FrozenDict(  # type: ignore[assignment]
            {k: v for k, v in dict(model.config).items() if k != "quantization_config"}  # type: ignore[arg-type]
        )
        model.quantization_method = None  # type: ignore[assignment]
        return model


def register() -> None:
    """Make our format known to diffusers' ``from_pretrained``."""
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[QUANT_METHOD] = QsdmConfig
    auto.AUTO_QUANTIZER_MAPPING[QUANT_METHOD] = QsdmQuantizer
