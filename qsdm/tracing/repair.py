"""Find inputs for a forward whose signature does not say enough, by running and correcting them.

A failing call shows the shapes that it takes, and the recording of the calls before it shows from
which inputs its operands come: if text reaches a Linear that takes 768 features, the text must have
768 features. Each round corrects one input. Several layouts of the first argument are tried; those
inputs are chosen on which the forward runs and uses the most weights.
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
from qsdm.tracing.calls import KIND_OF, Failure, Recording, TraceError
from qsdm.tracing.inputs import build_with_optional
from qsdm.tracing.record import attempt
from qsdm.tracing.vocabulary import Shapes, floats

ROUNDS = 24
ENOUGH = 0.9  # coverage from which on no other layout is tried
LAYOUTS = ("BCHW", "BNC", "BCFHW", "BFCHW", "BCL", "BC")

Arguments = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Solution:
    """Arguments on which a forward runs.

    Attributes:
        arguments: by name.
        repairs: descriptions of the changes to the inputs that were built first.
    """

    arguments: Arguments
    repairs: tuple[str, ...]


def find(
    module: nn.Module, overrides: Mapping[str, Any], coverage: Callable[[Recording], float]
) -> Solution:
    """Find arguments on which a skeleton runs and uses as many weights as possible.

    If some weights are not used, guesses at the optional inputs are passed as well: all of them, or
    those whose names begin alike.

    Args:
        module: a skeleton (see `qsdm.tracing.skeleton`).
        overrides: as `inputs.build` takes them; they are never changed.
        coverage: returns the share of the weights that a recording uses, in [0, 1].

    Returns:
        Of all layouts that were tried, the arguments with the highest coverage.

    Raises:
        TraceError: the forward ran on no arguments; the message tells where the first try failed.
    """
    fixed = {name.partition(".")[0] for name in overrides}
    best: tuple[float, Solution] | None = None
    first_error: TraceError | None = None
    first = Shapes.of(module)
    for shapes in _trials(module, first):
        arguments, optional = build_with_optional(module, overrides, shapes)
        main = next(iter(arguments))
        video = f" of {shapes.frames} frames" if "F" in shapes.layout else ""
        change = () if shapes == first else (f"{main} as {shapes.layout}{video}",)
        recording, base, error = _repair(module, arguments, optional, fixed, shapes)
        if recording is None:
            first_error = first_error or error
            continue
        base = Solution(base.arguments, (*change, *base.repairs))
        candidate = coverage(recording), base
        alike = {
            name: base.arguments[main]
            for name, v in optional.items()
            if _shape(v) == _shape(arguments[main])
        }
        for more in _groups(optional | alike, base.arguments) if candidate[0] < 1 else ():
            wider, extended, _ = _repair(
                module, {**base.arguments, **more}, optional, fixed, shapes
            )
            if wider is not None and (share := coverage(wider)) > candidate[0]:
                repairs = (*base.repairs, f"with {', '.join(more)}", *extended.repairs)
                candidate = share, Solution(extended.arguments, repairs)
        if best is None or candidate[0] > best[0]:
            best = candidate
        if best[0] >= ENOUGH:
            break
    if best is None:
        raise first_error or TraceError(
            f"no inputs were found for {type(module).__name__}: give model.inputs"
        )
    return best[1]


def _groups(optional: Arguments, arguments: Arguments) -> Iterator[Arguments]:
    """Optional inputs to pass together: all of them, then those whose names begin alike."""
    tensors = {
        name: v
        for name, v in optional.items()
        if isinstance(v, Tensor) and arguments.get(name) is None
    }
    if tensors:
        yield tensors
    stems = dict.fromkeys("_".join(name.split("_")[:2]) for name in tensors)
    for stem in stems if len(stems) > 1 else ():
        yield {name: value for name, value in tensors.items() if name.startswith(stem)}


def _trials(module: nn.Module, first: Shapes) -> Iterator[Shapes]:
    """Sizes to try, the likely ones first.

    They begin with the layout that the signature and the class's name suggest; then come the one
    that the code shows, videos of fewer frames, and all other layouts.
    """
    yield first
    main = list(inspect.signature(type(module).forward).parameters)[1]
    in_code = axes.layout(first.axes.get(main, ()))
    in_code = "BCL" if in_code == "BCN" else in_code  # audio
    if in_code and in_code != first.layout:
        yield dataclasses.replace(first, layout=in_code)
    if "F" in first.layout:
        for frames in (4, 2, 1):
            yield dataclasses.replace(first, frames=frames)
    for layout in LAYOUTS:
        if layout not in (first.layout, in_code):
            yield dataclasses.replace(first, layout=layout)


def _repair(
    module: nn.Module, arguments: Arguments, optional: Arguments, fixed: set[str], shapes: Shapes
) -> tuple[Recording | None, Solution, TraceError | None]:
    repairs: list[str] = []
    error: TraceError | None = None
    for _ in range(ROUNDS):
        recording, failure = attempt(module, arguments)
        if failure is None:
            return recording, Solution(arguments, tuple(repairs)), None
        error = error or failure.to_error(module, arguments)
        change = _change(failure, arguments, optional, fixed, shapes)
        if change is None or repairs.count(change[1]) > 1:
            break
        arguments = change[0]
        repairs.append(change[1])
    return None, Solution(arguments, tuple(repairs)), error


def _change(
    failure: Failure, arguments: Arguments, optional: Arguments, fixed: set[str], shapes: Shapes
) -> tuple[Arguments, str] | None:
    """The arguments with one of them corrected, and a description; None if nothing is left."""
    for path, value in _proposals(failure, arguments, optional, shapes):
        if path.partition(".")[0] not in fixed:
            shown = list(value.shape) if isinstance(value, Tensor) else value
            return _with(arguments, path.split("."), value), f"{path} -> {shown}"
    return None


def _proposals(
    failure: Failure, arguments: Arguments, optional: Arguments, shapes: Shapes
) -> Iterator[tuple[str, Any]]:
    """Path and new value of inputs that may be wrong."""
    yield from _follow_weight(failure, arguments)
    yield from _change_dtype(failure, arguments)
    yield from _follow_operand(failure, arguments)
    yield from _follow_unpacking(failure, arguments, shapes)
    yield from _leave_out(failure, arguments)
    yield from _pass_optional(failure, arguments, optional)


def _follow_weight(failure: Failure, arguments: Arguments) -> Iterator[tuple[str, Any]]:
    """A Linear, Conv or norm shows how many features it takes."""
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
    sources = [(path, _at(arguments, path)) for path in failure.inputs_of(x)]
    sources = [
        (path, value) for path, value in sources if value.is_floating_point() and value.dim() > 1
    ]
    for path, value in sources:
        for axis in [dim % value.dim(), *range(value.dim() - 1, 0, -1)]:
            if value.shape[axis] == got:
                yield path, _resized(value, axis, need)
    folded = [
        (path, _resized(value, axis, value.shape[axis] * need // got))
        for path, value in sources
        for axis in range(value.dim() - 1, 0, -1)
        if value.shape[axis] * need % got == 0 and got % value.shape[axis] == 0
    ]
    along = [1 if kind == "conv" else -1, -1]
    parts = next(
        (axis for axis in along if sum(value.shape[axis] for _, value in sources) == got), None
    )
    joined = [
        (path, _resized(value, axis % value.dim(), value.shape[axis] + need - got))
        for axis in [along[0] if parts is None else parts]
        for path, value in sources
        if value.shape[axis] + need - got > 0
    ]
    # Concatenated to other inputs, or folded into patches?
    yield from folded + joined if parts is None or len(sources) < 2 else joined + folded


def _change_dtype(failure: Failure, arguments: Arguments) -> Iterator[tuple[str, Any]]:
    """An input that is used as an index holds integers; a mask holds booleans."""
    message = str(failure.error)
    for x in failure.tensors:
        for path in failure.inputs_of(x):
            value = _at(arguments, path)
            if value.is_floating_point() and re.search(
                "Long|IntTensor|indices|tensors used as ind", message
            ):
                # Indices have no axis of features.
                shape = value.shape[:2] if value.dim() == 3 else value.shape
                yield path, torch.zeros(shape, dtype=torch.int64)
            elif value.dtype != torch.bool and re.search("Bool|a bool", message):
                yield path, torch.ones(value.shape, dtype=torch.bool)


def _follow_operand(failure: Failure, arguments: Arguments) -> Iterator[tuple[str, Any]]:
    """If two operands do not fit together, the one that fewer inputs reach follows the other."""
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
    for x, paths in sorted(reached, key=lambda pair: (main in pair[1], len(pair[1]))):
        for path in paths:
            value = _at(arguments, path)
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
                            yield path, _resized(value, axis, b)
    if match := re.search(
        r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)", message
    ):
        a, b = int(match[1]), int(match[2])
        for x, need, got in ((operands[0], b, a), (operands[-1], a, b)):
            for path in failure.inputs_of(x):  # one of several parts of a sequence
                value = _at(arguments, path)
                if (
                    value.dim() == 3
                    and value.is_floating_point()
                    and value.shape[1] + need - got > 0
                ):
                    yield path, _resized(value, 1, value.shape[1] + need - got)


def _follow_unpacking(
    failure: Failure, arguments: Arguments, shapes: Shapes
) -> Iterator[tuple[str, Any]]:
    """``batch, frames = timestep.shape`` shows how many axes the argument has, and which."""
    if "values to unpack" not in str(failure.error):
        return
    for frame in reversed(traceback.extract_tb(failure.error.__traceback__)):
        name, names = axes.unpacked_in(frame.line or "") or ("", ())
        if isinstance(value := arguments.get(name), Tensor) and len(names) != value.dim():
            yield name, torch.ones([shapes.size(axis) for axis in names], dtype=value.dtype)


def _leave_out(failure: Failure, arguments: Arguments) -> Iterator[tuple[str, Any]]:
    """An optional input whose module does not exist with this config is left out."""
    if "'NoneType' object is not callable" in str(failure.error):
        for text in failure.lines():
            for name, value in arguments.items():
                if isinstance(value, Tensor | list | tuple) and re.search(rf"\b{name}\b", text):
                    yield name, None


def _pass_optional(
    failure: Failure, arguments: Arguments, optional: Arguments
) -> Iterator[tuple[str, Any]]:
    """An optional input that the failing line or the error names is passed."""
    text = " ".join([*failure.lines(), str(failure.error)])
    if "None" in text or isinstance(failure.error, ValueError | TypeError | AttributeError):
        for name, value in optional.items():
            if arguments.get(name) is None and re.search(rf"\b{name}\b", text):
                yield name, value


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _at(arguments: Any, path: str) -> Tensor:
    return dict(lazy.tensors(arguments))[path]


def _with(value: Any, path: list[str], new: Any) -> Any:
    """``value`` with the entry at ``path`` replaced; containers on the way are copied."""
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
