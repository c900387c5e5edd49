"""Inputs for a forward whose signature does not tell enough: run it, and mend what its first failing call complains of.

A failing call names its shapes, and the recording of the calls before it says which input its operands come from: a
Linear that takes 768 features says that the text which reaches it has 768. Each round mends one input. What counts in
the end is that the forward runs and how many weights it uses, over all layouts of the first argument that are tried.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qsdm.tracing import axes, lazy
from qsdm.tracing.inputs import built
from qsdm.tracing.record import KIND_OF, Failure, Recording, TraceError, attempt
from qsdm.tracing.vocabulary import Shapes, floats

ROUNDS = 24
ENOUGH = 0.9  # coverage at which no other layout is tried
LAYOUTS = ("BCHW", "BNC", "BCFHW", "BFCHW", "BCL", "BC")

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """Arguments for one forward.

    Attributes:
        repairs: what was changed after the inputs were built, in words.
    """

    arguments: Arguments
    repairs: tuple[str, ...]


def find(
    module: nn.Module, overrides: Mapping[str, Any], coverage: Callable[[Recording], float]
) -> Found:
    """Arguments that ``module``, a skeleton, runs on; of several layouts those with the highest coverage.

    Where weights are left out, guesses at the optional inputs are handed in too, all of them or those of one kind.

    Args:
        overrides: as `inputs.build` takes them; these are never changed.
        coverage: share of the weights that a recording uses.

    Raises:
        TraceError: nothing that was tried runs; tells where the first try ended.
    """
    kept = {name.partition(".")[0] for name in overrides}
    best: tuple[float, Found] | None = None
    first_error: TraceError | None = None
    first = Shapes.of(module)
    for shapes in _trials(module, first):
        arguments, held = built(module, overrides, shapes)
        main = next(iter(arguments))
        video = f" of {shapes.frames} frames" if "F" in shapes.layout else ""
        tried = () if shapes == first else (f"{main} as {shapes.layout}{video}",)
        recording, done, error = _mended(module, arguments, held, kept, shapes)
        if recording is None:
            first_error = first_error or error
            continue
        done = Found(done.arguments, (*tried, *done.repairs))
        found = coverage(recording), done
        alike = {
            name: done.arguments[main]
            for name, v in held.items()
            if _shape(v) == _shape(arguments[main])
        }
        for more in _optional(held | alike, done.arguments) if found[0] < 1 else ():
            wider, with_more, _ = _mended(module, {**done.arguments, **more}, held, kept, shapes)
            if wider is not None and (share := coverage(wider)) > found[0]:
                repairs = (*done.repairs, f"with {', '.join(more)}", *with_more.repairs)
                found = share, Found(with_more.arguments, repairs)
        if best is None or found[0] > best[0]:
            best = found
        if best[0] >= ENOUGH:
            break
    if best is None:
        raise first_error or TraceError(
            f"no inputs were found for {type(module).__name__}: give model.inputs"
        )
    return best[1]


def _optional(held: Arguments, arguments: Arguments) -> Iterator[Arguments]:
    """Optional inputs that may be handed in together: all, then those whose names begin with the same words."""
    tensors = {
        name: v for name, v in held.items() if isinstance(v, Tensor) and arguments.get(name) is None
    }
    if tensors:
        yield tensors
    stems = dict.fromkeys("_".join(name.split("_")[:2]) for name in tensors)
    for stem in stems if len(stems) > 1 else ():
        yield {name: value for name, value in tensors.items() if name.startswith(stem)}


def _trials(module: nn.Module, first: Shapes) -> Iterator[Shapes]:
    """Likely sizes first: the layout that the signature and the class's name suggest, that which its code tells, videos
    of fewer frames, then the other layouts.
    """
    yield first
    main = list(inspect.signature(type(module).forward).parameters)[1]
    told = axes.layout(first.axes.get(main, ()))
    told = "BCL" if told == "BCN" else told  # a sound
    if told and told != first.layout:
        yield dataclasses.replace(first, layout=told)
    if "F" in first.layout:
        for frames in (4, 2, 1):
            yield dataclasses.replace(first, frames=frames)
    for layout in LAYOUTS:
        if layout not in (first.layout, told):
            yield dataclasses.replace(first, layout=layout)


def _mended(
    module: nn.Module, arguments: Arguments, held: Arguments, kept: set[str], shapes: Shapes
) -> tuple[Recording | None, Found, TraceError | None]:
    repairs: list[str] = []
    error: TraceError | None = None
    for _ in range(ROUNDS):
        recording, failure = attempt(module, arguments)
        if failure is None:
            return recording, Found(arguments, tuple(repairs)), None
        error = error or failure.told(module, arguments)
        change = _change(failure, arguments, held, kept, shapes)
        if change is None or repairs.count(change[1]) > 1:
            break
        arguments = change[0]
        repairs.append(change[1])
    return None, Found(arguments, tuple(repairs)), error


def _change(
    failure: Failure, arguments: Arguments, held: Arguments, kept: set[str], shapes: Shapes
) -> tuple[Arguments, str] | None:
    """The arguments with one of them mended, and what was done; None if nothing is left to try."""
    for place, value in _proposals(failure, arguments, held, shapes):
        if place.partition(".")[0] not in kept:
            shown = list(value.shape) if isinstance(value, Tensor) else value
            return _with(arguments, place.split("."), value), f"{place} -> {shown}"
    return None


def _proposals(
    failure: Failure, arguments: Arguments, held: Arguments, shapes: Shapes
) -> Iterator[tuple[str, Any]]:
    yield from _follow_weight(failure, arguments)
    yield from _indices(failure, arguments)
    yield from _follow_operand(failure, arguments)
    yield from _unpacked(failure, arguments, shapes)
    yield from _taken_out(failure, arguments)
    yield from _handed_in(failure, arguments, held)


def _follow_weight(failure: Failure, arguments: Arguments) -> Iterator[tuple[str, Any]]:
    """A Linear, Conv or norm says how many features it takes."""
    operands = failure.tensors
    kind = KIND_OF.get(failure.function)
    if kind == "linear" and len(operands) > 1:
        x, dim, need = operands[0], -1, operands[1].shape[1]
    elif kind == "conv" and len(operands) > 1:
        groups = failure.option("groups", 6, 1)
        x, dim, need = operands[0], 1, operands[1].shape[1] * groups
        if x.dim() == operands[1].dim() - 1:
            return
    elif failure.function == "group_norm" and len(operands) > 1:
        x, dim, need = operands[0], 1, operands[1].shape[0]
    elif failure.function in ("layer_norm", "rms_norm") and operands:
        shape = failure.option("normalized_shape", 1, None)
        if not shape:
            return
        x, dim, need = operands[0], -1, shape[-1]
    else:
        return
    if x.dim() <= (dim if dim > 0 else 0) or x.shape[dim] == need:
        return
    got = x.shape[dim]
    sources = [(place, _at(arguments, place)) for place in failure.inputs_of(x)]
    sources = [
        (place, value) for place, value in sources if value.is_floating_point() and value.dim() > 1
    ]
    for place, value in sources:
        for axis in [dim % value.dim(), *range(value.dim() - 1, 0, -1)]:
            if value.shape[axis] == got:
                yield place, _resized(value, axis, need)
    folded = [
        (place, _resized(value, axis, value.shape[axis] * need // got))
        for place, value in sources
        for axis in range(value.dim() - 1, 0, -1)
        if value.shape[axis] * need % got == 0 and got % value.shape[axis] == 0
    ]
    along = [1 if kind == "conv" else -1, -1]
    parts = next(
        (axis for axis in along if sum(value.shape[axis] for _, value in sources) == got), None
    )
    joined = [
        (place, _resized(value, axis % value.dim(), value.shape[axis] + need - got))
        for axis in [along[0] if parts is None else parts]
        for place, value in sources
        if value.shape[axis] + need - got > 0
    ]
    # Concatenated to other inputs, or folded into patches?
    yield from folded + joined if parts is None or len(sources) < 2 else joined + folded


def _indices(failure: Failure, arguments: Arguments) -> Iterator[tuple[str, Any]]:
    """An input that is used as an index holds integers, and a mask truth values."""
    message = str(failure.error)
    for x in failure.tensors:
        for place in failure.inputs_of(x):
            value = _at(arguments, place)
            if value.is_floating_point() and re.search(
                "Long|IntTensor|indices|tensors used as ind", message
            ):
                shape = (
                    value.shape[:2] if value.dim() == 3 else value.shape
                )  # indices have no features
                yield place, torch.zeros(shape, dtype=torch.int64)
            elif value.dtype != torch.bool and re.search("Bool|a bool", message):
                yield place, torch.ones(value.shape, dtype=torch.bool)


def _follow_operand(failure: Failure, arguments: Arguments) -> Iterator[tuple[str, Any]]:
    """Of two operands that do not go together, the one that is nearer to an input follows the other."""
    message = str(failure.error)
    if not re.search(
        "must match|broadcast|expanded size|same number of dimensions|size of tensor", message
    ):
        return
    operands = failure.tensors
    along = failure.option("dim", 1, 0) if KIND_OF.get(failure.function) == "concat" else None
    main = next(iter(arguments))
    reached = [(x, failure.inputs_of(x, past)) for past in (False, True) for x in operands]
    # The main input changes last.
    for x, places in sorted(reached, key=lambda pair: (main in pair[1], len(pair[1]))):
        for place in places:
            value = _at(arguments, place)
            for other in operands:
                if other is x:
                    continue
                for back in range(1, min(x.dim(), other.dim()) + 1):
                    a, b = x.shape[-back], other.shape[-back]
                    joined = isinstance(along, int) and along % x.dim() == x.dim() - back
                    if a == b or joined or (along is None and 1 in (a, b)):
                        continue
                    for axis in range(value.dim() - 1, -1, -1):
                        if value.shape[axis] == a and (axis > 0 or value.dim() <= 2):
                            yield place, _resized(value, axis, b)
    if match := re.search(
        r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", message
    ):
        a, b = int(match[1]), int(match[2])
        for x, need, got in ((operands[0], b, a), (operands[-1], a, b)):
            for place in failure.inputs_of(x):  # one of several parts of a sequence
                value = _at(arguments, place)
                if (
                    value.dim() == 3
                    and value.is_floating_point()
                    and value.shape[1] + need - got > 0
                ):
                    yield place, _resized(value, 1, value.shape[1] + need - got)


def _unpacked(failure: Failure, arguments: Arguments, shapes: Shapes) -> Iterator[tuple[str, Any]]:
    """``batch, frames = timestep.shape`` says how many axes the argument has, and what they are."""
    if "values to unpack" not in str(failure.error):
        return
    for frame in reversed(traceback.extract_tb(failure.error.__traceback__)):
        name, names = axes.unpacked_in(frame.line or "") or ("", ())
        if isinstance(value := arguments.get(name), Tensor) and len(names) != value.dim():
            yield name, torch.ones([shapes.size(axis) for axis in names], dtype=value.dtype)


def _taken_out(failure: Failure, arguments: Arguments) -> Iterator[tuple[str, Any]]:
    """An optional input whose module this config does not have."""
    if "'NoneType' object is not callable" in str(failure.error):
        for text in failure.lines():
            for name, value in arguments.items():
                if isinstance(value, Tensor | list | tuple) and re.search(rf"\b{name}\b", text):
                    yield name, None


def _handed_in(
    failure: Failure, arguments: Arguments, held: Arguments
) -> Iterator[tuple[str, Any]]:
    """An optional input that the failing line, or the error, names."""
    said = " ".join([*failure.lines(), str(failure.error)])
    if "None" in said or isinstance(failure.error, ValueError | TypeError | AttributeError):
        for name, value in held.items():
            if arguments.get(name) is None and re.search(rf"\b{name}\b", said):
                yield name, value


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _at(arguments: Any, place: str) -> Tensor:
    return dict(lazy.tensors(arguments))[place]


def _with(value: Any, path: list[str], new: Any) -> Any:
    """``value`` with the entry at ``path`` exchanged; containers on the way are copied."""
    if not path:
        return new
    if isinstance(value, list | tuple):
        i = int(path[0])
        return type(value)([*value[:i], _with(value[i], path[1:], new), *value[i + 1 :]])
    return {**value, path[0]: _with(value.get(path[0], {}), path[1:], new)}


def _resized(value: Tensor, axis: int, size: int) -> Tensor:
    shape = [*value.shape[:axis], size, *value.shape[axis + 1 :]]
    if value.is_floating_point():
        return floats(*shape)
    return torch.full(shape, value.reshape(-1)[0].item() if value.numel() else 0, dtype=value.dtype)
