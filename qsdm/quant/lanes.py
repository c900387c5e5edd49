"""The best of eight candidates of a dynamic program, in vector registers.

LLVM vectorizes long loops alone. The program of `qsdm.quant.kmeans` has short ones: seven out of
eight compare at most eight candidates, so that one block of eight takes the place of a loop whose
length no processor predicts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LANES = 8

_COUNT, _FLAG, _INDEX, _NUMBER = ir.IntType(64), ir.IntType(1), ir.IntType(32), ir.DoubleType()


def _best_of_lanes(
    _typing: Any, p0: Any, p1: Any, gain: Any, j: Any, i: Any, end: Any
) -> tuple[Any, Callable[..., Any]]:  # pragma: no cover (compiled)
    """Find the best of the candidates j to j + 7 that are below ``end``.

    The arrays are read up to j + 7, so that much must be allocated. A candidate's value is
    ``gain[j] + (p1[i] - p1[j])**2 / (p0[i] - p0[j])``, in operations that round as those of one
    number do.

    Args:
        p0: contiguous float64 array.
        p1: contiguous float64 array.
        gain: contiguous float64 array, not negative.
        j: the first candidate, unsigned.
        i: to what the candidates are compared, unsigned.
        end: one after the last candidate, unsigned, greater than j.

    Returns:
        The greatest value, and the first candidate that has it, uint64.
    """
    result = types.Tuple((types.float64, types.uint64))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given = list(zip(signature.args, arguments, strict=True))
        sums, values, gains = (
            context.make_array(kind)(context, builder, array).data for kind, array in given[:3]
        )
        first, at, stop = (
            context.cast(builder, number, kind, types.uint64) for kind, number in given[3:]
        )

        def all_of(number: Any) -> Any:
            vector = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
            vector = builder.insert_element(vector, number, _INDEX(0))
            order = ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES)
            return builder.shuffle_vector(vector, vector, order)

        def lanes(pointer: Any) -> Any:
            kind = ir.VectorType(_NUMBER, LANES).as_pointer()
            vector = builder.load(builder.bitcast(builder.gep(pointer, [first]), kind))
            vector.align = 8
            return vector

        def difference(pointer: Any) -> Any:
            return builder.fsub(all_of(builder.load(builder.gep(pointer, [at]))), lanes(pointer))

        def call(name: str, kind: Any, *operands: Any, **flags: Any) -> Any:
            of = ir.FunctionType(kind, [operand.type for operand in operands])
            function = cgutils.get_or_insert_function(builder.module, of, name)
            return builder.call(function, operands, **flags)

        value = difference(values)
        value = builder.fdiv(builder.fmul(value, value), difference(sums))
        value = builder.fadd(lanes(gains), value)
        numbers = ir.Constant(ir.VectorType(_COUNT, LANES), list(range(LANES)))
        below = builder.icmp_unsigned("<", numbers, all_of(builder.sub(stop, first)))
        none = ir.Constant(ir.VectorType(_NUMBER, LANES), [-1.0] * LANES)
        value = builder.select(below, value, none)
        best = call(f"llvm.vector.reduce.fmax.v{LANES}f64", _NUMBER, value, fastmath=("nnan",))
        equal = builder.bitcast(builder.fcmp_ordered("==", value, all_of(best)), ir.IntType(LANES))
        place = call("llvm.cttz.i64", _COUNT, builder.zext(equal, _COUNT), _FLAG(1))
        return context.make_tuple(builder, result, [best, builder.add(first, place)])

    return result(p0, p1, gain, j, i, end), generate


best_of_lanes: Callable[..., tuple[float, int]] = intrinsic(_best_of_lanes)
