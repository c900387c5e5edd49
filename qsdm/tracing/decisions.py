"""Which weights are decided about together, and which are split by their inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qsdm.graph import Op, Weight
from qsdm.tracing.calls import Operand
from qsdm.tracing.sketch import Draft, Sketch


def tie(sketch: Sketch, patterns: Sequence[str]) -> None:
    """Merge parameters that match a pattern with the same groups into one weight.

    The weight has the name of the first of them.
    """
    for text in patterns:
        pattern = re.compile(text)
        groups: dict[tuple, list[Draft]] = {}
        for node in sketch.nodes.values():
            if node.weight is not None and (match := pattern.search(node.weight.parameter)):
                groups.setdefault(match.groups(), []).append(node)
        if not groups:
            raise ValueError(
                f"no quantized parameter matches the tied pattern {text!r}: "
                "correct it in the model's YAML file"
            )
        for nodes in groups.values():
            weights = list(dict.fromkeys(node.weight for node in nodes if node.weight is not None))
            if len({weight.shape for weight in weights}) > 1:
                raise ValueError(
                    f"tied pattern {text!r} joins weights of different shapes "
                    f"({weights[0].shape} and {weights[1].shape}): "
                    "add a group that distinguishes them"
                )
            first = weights[0]
            shared = Weight(
                first.name,
                first.parameter,
                first.shape,
                ties=tuple(weight.parameter for weight in weights[1:]),
            )
            for node in nodes:
                node.weight = shared


def split_concatenated(sketch: Sketch) -> None:
    """Split weights that are fed by a concatenation of features.

    Each becomes one node per slice, followed by an ``add`` of their results.
    """
    for number in [n for n, node in sketch.nodes.items() if node.weight is not None]:
        node = sketch.nodes[number]
        sizes = _slice_sizes(sketch, number)
        if not sizes or node.weight is None:
            continue
        whole = node.weight
        total = sketch.new_number()
        position = node.position[0]
        sketch.add(
            total,
            Draft(
                f"{node.name}.add", Op.ADD, node.call, node.module, position=(position, len(sizes))
            ),
        )
        start = 0
        for k, size in enumerate(sizes):
            shape = (whole.shape[0], size, *whole.shape[2:])
            weight = Weight(f"{whole.name}#{k}", whole.parameter, shape, start, whole.ties)
            part = sketch.new_number()
            macs = node.macs * size // whole.shape[1]
            sketch.add(
                part,
                Draft(weight.name, node.op, node.call, node.module, weight, macs, (position, k)),
            )
            for source, operands in sketch.into[number].items():
                sketch.connect(source, part, operands)
            sketch.connect(part, total, [Operand(number, str(k), node.call.shape)])
            start += size
        for target, operands in sketch.out[number].items():
            sketch.connect(total, target, operands)
            sketch.nodes[target].replace_condition(number, total)
        sketch.remove(number)


def _slice_sizes(sketch: Sketch, number: int) -> list[int]:
    """Input features per operand of the concatenation that feeds a weight.

    Norms may lie between the two. Empty if there is no such concatenation.
    """
    node = sketch.nodes[number]
    assert node.weight is not None
    if len(sketch.into[number]) != 1:
        return []
    (source,) = sketch.into[number]
    while sketch.nodes[source].op == Op.NORM and len(sketch.into[source]) == 1:
        (source,) = sketch.into[source]
    concat = sketch.nodes[source].call
    fan_in = node.weight.shape[1]
    dim = concat.concat_dim
    if sketch.nodes[source].op != Op.CONCAT or dim is None or concat.shape[dim] != fan_in:
        return []
    shape = next(
        (operand.shape for operands in sketch.into[number].values() for operand in operands), ()
    )
    features = 1 if node.op == Op.CONV else len(shape) - 1
    if len(shape) == len(concat.shape) and dim != features:
        return []
    by_role = {
        operand.role: operand.shape for operand in concat.operands if len(operand.shape) > dim
    }
    sizes = [part[dim] for part in by_role.values()]
    return sizes if len(sizes) > 1 and sum(sizes) == fan_in else []
