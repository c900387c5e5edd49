"""Replace a denoiser's layers by packed ones, as a configuration says, and by plain ones again."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from qsdm.graph import Graph, Weight
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod, input_bits
from qsdm.quant.activations import Rounding, remove_rounding
from qsdm.quant.fitting import fit
from qsdm.quant.packed import PACKED, PackedLayer, PackedWeight
from qsdm.quant.packed_state import require_one_version, stored_state, values_of_part
from qsdm.quant.quantized import Quantized
from qsdm.quant.swap import sliced


@dataclass(frozen=True, slots=True)
class Slice:
    """One quantized weight: input channels of a parameter, and of the parameters tied to it.

    Attributes:
        weight: of the denoiser's graph.
        method: the method that the configuration gives it.
    """

    weight: Weight
    method: QuantMethod

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameter and of those tied to it."""
        return self.weight.parameter, *self.weight.ties


def slices(graph: Graph, qconfig: QuantConfig, full_bits: int = 16) -> list[Slice]:
    """The slices of all parameters that a configuration quantizes, in order of input channels.

    A weight that has several methods, in several bins of steps, has a slice of each.

    Args:
        graph: of the denoiser.
        qconfig: the configuration.
        full_bits: 16 or 32, for a slice at full precision beside a quantized one.

    Raises:
        OutsideSpace: the configuration names a weight that the graph lacks.
    """
    if unknown := qconfig.weights - {weight.name for weight in graph.weights}:
        raise OutsideSpace(f"the graph of {graph.denoiser!r} has no weight {min(unknown)!r}")
    full = QuantMethod("fp", full_bits)
    methods = {
        weight.name: sorted({part.methods.get(weight.name, full) for _, part in qconfig.parts})
        for weight in graph.weights
    }
    changed = {
        weight.parameter
        for weight in graph.weights
        if not all(method.is_full for method in methods[weight.name])
    }
    plan = [
        Slice(weight, method)
        for weight in graph.weights
        if weight.parameter in changed
        for method in methods[weight.name]
    ]
    return sorted(plan, key=lambda piece: piece.weight.start)


def versions(
    plan: Iterable[Slice], qconfig: QuantConfig, full_bits: int = 16
) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Which slices of a parameter make up its weight in each part of a configuration's steps.

    Args:
        plan: see `slices`.
        qconfig: with bins of steps.
        full_bits: see `slices`.

    Returns:
        By the parameter's name, for each of ``qconfig.parts`` the numbers of the slices among those
        of this parameter; parameters that are the same in all parts are not named.
    """
    pieces: dict[str, list[Slice]] = {}
    for piece in plan:
        for name in piece.parameters:
            pieces.setdefault(name, []).append(piece)
    full, parts = QuantMethod("fp", full_bits), [part for _, part in qconfig.parts]
    numbers = {
        name: tuple(
            tuple(
                number
                for number, piece in enumerate(own)
                if part.methods.get(piece.weight.name, full) == piece.method
            )
            for part in parts
        )
        for name, own in pieces.items()
    }
    return {name: own for name, own in numbers.items() if len(set(own)) > 1}


def pack(
    module: nn.Module,
    graph: Graph,
    qconfig: QuantConfig,
    quantized: Callable[[str, QuantMethod], Quantized] | None = None,
    full_bits: int = 16,
) -> nn.Module:
    """Replace every layer that a configuration quantizes by a packed one, in place.

    diffusers' ``save_pretrained`` would write a packed module without its configuration, to be
    loaded with random weights, so it is refused; `qsdm.checkpoint.save_quantized` writes files.

    Args:
        module: the denoiser in full precision.
        graph: of the denoiser.
        qconfig: the configuration.
        quantized: (weight's name, method) => its quantized values, such as
            `qsdm.quant.calibrated.PackedWeights.quantized`. None: they are fitted now.
        full_bits: see `slices`.

    Returns:
        ``module``.

    Raises:
        OutsideSpace: the configuration names a weight that the graph lacks.
        ValueError: the module is not the graph's, a layer's class has no packed form, or the
            configuration has bins of steps.
    """
    if qconfig.steps:
        raise ValueError(
            "wanted one configuration for all steps to pack in memory (got the bins "
            f"{', '.join(map(str, qconfig.steps))}): save_quantized writes them, and "
            "load_quantized applies them"
        )
    plan, rounded = slices(graph, qconfig, full_bits), input_bits(graph, qconfig)
    fitted: dict[str, Quantized] = {}
    for piece in plan:
        name, method = piece.weight.name, piece.method
        if quantized is None or method.is_full:
            parameter = module.get_parameter(piece.weight.parameter)
            fitted[name] = fit(sliced(parameter, piece.weight), method)
        else:
            fitted[name] = quantized(name, method)
    replace_layers(module, plan, lambda piece: PackedWeight.of(fitted[piece.weight.name]))
    if qconfig.rounds_activations:
        Rounding(module, rounded, qconfig.activations is not None)
    if hasattr(module, "save_pretrained"):
        module.save_pretrained = refuse_to_save  # type: ignore[assignment]
    return module


def refuse_to_save(*_: Any, **__: Any) -> None:
    """In the place of a packed module's ``save_pretrained``.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "a denoiser that was packed in memory would be saved without its configuration, and loaded "
        "with random weights: call qsdm.checkpoint.save_quantized on the full-precision pipeline"
    )


def replace_layers(
    module: nn.Module,
    plan: Iterable[Slice],
    build: Callable[[Slice], PackedWeight],
    stepped: Mapping[str, tuple[tuple[int, ...], ...]] = {},
) -> None:
    """Replace the layers whose parameters a plan names, wherever they occur in a module.

    Args:
        module: the denoiser, changed in place.
        plan: see `slices`.
        build: makes the packed weight of a slice.
        stepped: see `versions`; the first version is in force.

    Raises:
        ValueError: the module is not the traced denoiser, or a layer's class has no packed form.
    """
    parts: dict[int, list[PackedWeight]] = {}
    numbers: dict[int, tuple[tuple[int, ...], ...]] = {}
    for piece in plan:
        try:  # tied names may mean one parameter, which is packed once
            owners = {id(module.get_parameter(name)) for name in piece.parameters}
        except AttributeError as error:
            raise ValueError(f"{error}: the module is not the traced denoiser") from error
        for owner in owners:
            parts.setdefault(owner, []).append(build(piece))
            numbers[owner] = stepped.get(piece.weight.parameter, ())
    packed: dict[int, nn.Module] = {}
    for parent, name, layer in list(_children(module)):
        owner = id(layer._parameters.get("weight"))
        if (own := parts.get(owner)) is None:
            continue
        if id(layer) not in packed:
            if type(layer) not in PACKED:
                raise ValueError(
                    f"{name!r} is a {type(layer).__name__}, which has no packed form: "
                    "leave it at full precision"
                )
            shape = tuple(layer.get_parameter("weight").shape)
            choices = numbers[owner] or (range(len(own)),)
            widths = {sum(own[number].shape[1] for number in choice) for choice in choices}
            if widths != {shape[1]} or own[0].shape[0] != shape[0]:
                raise ValueError(
                    f"wanted slices of {shape} for {name!r} (got {[part.shape for part in own]}): "
                    "the module is not the traced denoiser"
                )
            packed[id(layer)] = PACKED[type(layer)].of(layer, own, numbers[owner])
        parent._modules[name] = packed[id(layer)]
    for part in module.modules():
        if any(isinstance(layer, PackedLayer) for layer in part.modules()):
            hook = stored_state if part is module else values_of_part
            if hook not in part._state_dict_hooks.values():
                part._register_state_dict_hook(hook)
    _refuse_wrong_swaps(module)


def _refuse_wrong_swaps(module: nn.Module) -> None:
    """Before 0.20, peft swaps an adapter of packed layers for wrong values, without an error."""
    try:
        version = importlib.metadata.version("peft")
    except importlib.metadata.PackageNotFoundError:
        return
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < (0, 20) and hasattr(module, "load_lora_adapter"):
        module.load_lora_adapter = partial(_load_adapter, module, version)  # type: ignore[assignment]


def _load_adapter(
    module: Any, version: str, *args: Any, hotswap: bool = False, **options: Any
) -> None:
    if hotswap:
        raise RuntimeError(
            f"peft {version} would leave wrong values when it swaps an adapter of packed layers: "
            "install peft 0.20 or newer, or load the adapter under another name"
        )
    type(module).load_lora_adapter(module, *args, **options)


def unpack(module: nn.Module) -> nn.Module:
    """Replace every packed layer by a plain one with its values, which rounds no input, in place.

    Args:
        module: the denoiser.

    Returns:
        ``module``.

    Raises:
        ValueError: weights change with the sampler's steps.
    """
    require_one_version(module)
    remove_rounding(module)
    weights: dict[tuple[int, ...], nn.Parameter] = {}  # what was tied stays tied
    plain: dict[int, nn.Module] = {}
    for parent, name, layer in list(_children(module)):
        if not isinstance(layer, PackedLayer):
            continue
        if id(layer) not in plain:
            parts = tuple(map(id, layer.packed))
            if parts not in weights:
                weights[parts] = nn.Parameter(layer.decoded())
            plain[id(layer)] = layer.plain(weights[parts])
        parent._modules[name] = plain[id(layer)]
    for part in module.modules():
        hooks = part._state_dict_hooks
        for key in [key for key, hook in hooks.items() if hook in (stored_state, values_of_part)]:
            del hooks[key]
    for name in ("save_pretrained", "load_lora_adapter"):  # as they were set beside packed layers
        vars(module).pop(name, None)
    return module


def _children(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in module.modules():
        for name, child in parent._modules.items():
            if child is not None:
                yield parent, name, child


def state_names(plan: Iterable[Slice]) -> Mapping[str, Slice]:
    """The slices by the name of their module in a packed denoiser.

    Args:
        plan: see `slices`.

    Returns:
        Slice by ``path.packed.K``, the prefix of its parts in the state dict.
    """
    counts: dict[str, int] = {}
    names = {}
    for piece in plan:
        for name in piece.parameters:
            k = counts.get(name, 0)
            counts[name] = k + 1
            names[f"{name.removesuffix('.weight')}.packed.{k}"] = piece
    return names
