"""Configurations with their activations rounded, measured beside the same weights without that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qsdm.measurement.paired import difference
from qsdm.qconfig import QuantConfig, cost
from qsdm.qconfig import activations as widths
from qsdm.store.schemas import ActivationDifference, ActivationRow, ActivationTable

if TYPE_CHECKING:
    from qsdm.measurement.session import Measured, Session
    from qsdm.outcome import Protocol
    from qsdm.text import Log


def read_widths(values: Sequence[int] | int) -> tuple[int, ...]:
    """Check bits of activations from a command line.

    Args:
        values: one or more of 2 to 8, and 16.

    Returns:
        Each once, in the given order.

    Raises:
        ValueError: the bits are out of range.
    """
    listed = (values,) if isinstance(values, int) else tuple(values)
    return tuple(dict.fromkeys(widths.check(bits) for bits in listed))


def measure_rounded(
    ready: Session,
    qconfigs: Mapping[str, QuantConfig],
    bits: Sequence[int],
    protocol: Protocol,
    log: Log,
) -> tuple[ActivationTable, Measured]:
    """Measure configurations at several widths of activations, with the same captions and noise.

    Args:
        ready: the running session.
        qconfigs: configurations of weights by name; each is compared with the first, too.
        bits: of the activations; 16 is always measured, as others are compared with it.
        protocol: how pictures are drawn.
        log: receives the metrics of every outcome.

    Returns:
        The table, and the outcomes.

    Raises:
        EvaluationError: a configuration cannot be measured.
    """
    every = sorted({*bits, widths.FULL}, reverse=True)
    rounded = {
        (name, own): qconfig.with_activations(own)
        for name, qconfig in qconfigs.items()
        for own in every
    }
    measured = ready.measure(list(rounded.values()), protocol, "realize", log)
    graph, full_bits = ready.space.graph, ready.space.full_bits
    rows: list[ActivationRow] = []
    differences: list[ActivationDifference] = []
    first = next(iter(qconfigs))
    for (name, own), qconfig in rounded.items():
        outcome = measured.of(qconfig)
        row: ActivationRow = {
            "name": name,
            "activations": own,
            "avg_bits": cost.avg_bits(graph, qconfig, full_bits),
            "size_bytes": cost.size_bytes(graph, qconfig, full_bits),
            "tera_bops": cost.tera_bops(graph, qconfig, full_bits),
            "metrics": dict(outcome.metrics),
            "standard_errors": {
                metric: outcome.standard_error(metric) for metric in outcome.halves
            },
            "qconfig": qconfig.digest,
        }
        rows.append(row)
        references = [] if own == widths.FULL else [(name, widths.FULL)]
        references += [] if name == first else [(first, own)]
        for reference in references:
            other = measured.of(rounded[reference])
            found = {metric: difference(outcome, other, metric) for metric in outcome.metrics}
            differences.append(
                {
                    "first": list(reference),
                    "second": [name, own],
                    "metrics": {
                        metric: [one.value, one.standard_error]
                        for metric, one in found.items()
                        if one is not None
                    },
                }
            )
    return {"bits": every, "rows": rows, "differences": differences}, measured
