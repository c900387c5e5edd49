"""Configurations with their activations rounded, measured beside the same weights without that.

`random_widths` makes them for a bank, whose differences from the same weights without rounding tell
what each input bears (`qsdm.predictor.rounding`). A width is drawn for each layer, by chances that
are drawn for each role first: so configurations differ in how much of a role they round, which few
of them tell, and within a role from layer to layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qsdm.engine import Failure
from qsdm.graph import Graph
from qsdm.measurement.paired import difference
from qsdm.outcome import EvaluationError
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


def random_widths(
    graph: Graph, qconfigs: Sequence[QuantConfig], bits: Sequence[int], seed: int
) -> list[QuantConfig]:
    """Round the inputs of every layer of configurations to random widths.

    Args:
        graph: of the denoiser.
        qconfigs: the configurations, whose methods stay.
        bits: widths, 2 to 8 and 16.
        seed: of the random numbers; a longer list begins with what a shorter one gives.

    Returns:
        The configurations with a width for each layer; parts of one weight have the same.
    """
    from qsdm.measurement.inputs import by_role

    rng = np.random.default_rng(seed)
    parameters = {weight.name: weight.parameter for weight in graph.weights}
    rounded = []
    for qconfig in qconfigs:
        widths_of: dict[str, int] = {}
        for names in by_role(graph).values():
            chances = rng.dirichlet(np.full(len(bits), _CONCENTRATION))
            for parameter in dict.fromkeys(parameters[name] for name in names):
                widths_of[parameter] = int(rng.choice(bits, p=chances))
        inputs = {name: widths_of[parameter] for name, parameter in parameters.items()}
        rounded.append(QuantConfig(qconfig.denoiser, qconfig.methods, None, inputs))
    return rounded


def errors_of_rounding(ready: Session, bits: Sequence[int]) -> np.ndarray:
    """Record the inputs of all layers in full precision, and round them.

    Args:
        ready: the running session.
        bits: K widths, 2 to 8.

    Returns:
        Squared error over squared norm, float64 [W, K].

    Raises:
        EvaluationError: the inputs cannot be recorded.
    """
    from qsdm.measurement.inputs import RoundingTask

    task = RoundingTask(ready.drawing(0, _NUM_IMAGES), _NUM_STEPS, tuple(bits))
    [(_, error)] = ready.pool.map([task])
    if isinstance(error, Failure):
        raise EvaluationError(f"the inputs of layers cannot be recorded: {error.reason}")
    return np.asarray(error)


_NUM_IMAGES, _NUM_STEPS = 16, 5  # of which inputs are recorded
_CONCENTRATION = 0.5  # below 1: most roles have few of one width, or many


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
