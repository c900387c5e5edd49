"""What one forward of a denoiser consists of: its calls of torch functions, or its failure."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from qsdm.tracing import lazy

KINDS = {
    kind: frozenset(names.split())
    for kind, names in {
        "linear": "linear",
        "conv": "conv1d conv2d conv3d",
        "conv_transpose": "conv_transpose1d conv_transpose2d conv_transpose3d",
        "embedding": "embedding",
        "matmul": "matmul __matmul__ __rmatmul__ bmm mm einsum baddbmm addmm addbmm tensordot "
        "_grouped_mm",
        "sdpa": "scaled_dot_product_attention",
        "mha": "multi_head_attention_forward",
        "norm": "layer_norm group_norm rms_norm instance_norm batch_norm normalize",
        "add": "add __add__ __radd__ __iadd__ add_ sub __sub__ __rsub__ __isub__ sub_ rsub addcmul "
        "lerp",
        "mul": "mul __mul__ __rmul__ __imul__ mul_ multiply div __truediv__ __rtruediv__ "
        "__itruediv__ div_ true_divide",
        "concat": "cat concat concatenate stack hstack vstack",
        "select": "where masked_fill masked_fill_ masked_scatter scatter scatter_ scatter_add "
        "scatter_add_ index_add index_add_ index_copy index_put index_put_ __setitem__ copy_ topk "
        "gather index_select take_along_dim",
    }.items()
}


KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that a call takes.

    Attributes:
        source: number of the call that produced it.
        role: where it is among the arguments, as a dotted path.
        shape: its shape.
    """

    source: int
    role: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class Call:
    """One call of a torch function.

    Attributes:
        kind: a key of `KINDS`, ``input``, ``output`` or ``other``.
        function: name of the torch function; of an input its path.
        module: path of the innermost module whose forward runs.
        frames: ids of the module calls on the stack, outermost first.
        operands: the tensors that it takes, other than parameters.
        parameters: name and shape of each parameter among its arguments.
        shape: of its first result.
        macs: multiply-accumulates.
        concat_dim: the dimension of a concatenation.
        plumbing: an input of positions, masks or sizes.
    """

    kind: str
    function: str
    module: str
    frames: tuple[int, ...] = ()
    operands: list[Operand] = field(default_factory=list)
    parameters: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    macs: int = 0
    concat_dim: int | None = None
    plumbing: bool = False


@dataclass(slots=True)
class Recording:
    """One forward.

    Attributes:
        calls: all its calls, in order.
        frames: id of each module call => path of the module.
    """

    calls: list[Call]
    frames: dict[int, str]


class TraceError(Exception):
    """The module cannot be traced; the message says why and what to do."""


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """Where a forward failed.

    Attributes:
        error: what was raised.
        function: the torch function that failed; empty if other code did.
        module: path of the module whose forward called it.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        inputs_of: a tensor among these arguments => paths of the inputs that reach it (see
            `Recorder.inputs_of`).
    """

    error: Exception
    function: str
    module: str
    args: Any
    kwargs: Mapping[str, Any]
    inputs_of: Callable[..., list[str]]

    @property
    def tensors(self) -> list[Tensor]:
        """The call's operands."""
        return [tensor for _, tensor in lazy.tensors((self.args, self.kwargs))]

    def option(self, name: str, position: int, default: Any) -> Any:
        """An argument of the call, by name or by position."""
        return self.kwargs.get(name, self.args[position] if len(self.args) > position else default)

    def lines(self) -> list[str]:
        """Source lines of the traceback, the innermost first."""
        return [
            frame.line or "" for frame in reversed(traceback.extract_tb(self.error.__traceback__))
        ]

    def to_error(self, module: nn.Module, inputs: Mapping[str, Any]) -> TraceError:
        """Describe the failure in one sentence.

        Args:
            module: the module whose forward failed.
            inputs: arguments of that forward by name.

        Returns:
            The error, to be raised by the caller.
        """
        message = str(self.error).strip()
        reason = f"{type(self.error).__name__}: {message.splitlines()[0][:200] if message else ''}"
        shapes = ", ".join(str(list(tensor.shape)) for tensor in self.tensors)
        where = (
            f"{self.function} in {self.module or 'the forward'} with {shapes}: "
            if self.function
            else ""
        )
        advice = "give model.inputs.NAME=[shape] for those that are wrong or missing"
        if isinstance(self.error, NotImplementedError | ImportError) or re.search(
            r"\bCUDA\b|triton", message, re.IGNORECASE
        ):
            advice = (
                "this kernel does not run on a CPU: "
                "load the model with plain attention and without fused layers"
            )
        return TraceError(
            f"{type(module).__name__} does not run on inputs {', '.join(inputs)} "
            f"({where}{reason}): {advice}"
        )
