"""Inputs of the layers of one role after the other, rounded while weights keep full precision."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qsdm import text
from qsdm.outcome import SIGNIFICANT_Z, EvaluationError, Outcome
from qsdm.predictor.probes import harm_of
from qsdm.probing import Probing
from qsdm.qconfig import QuantConfig


def probe_roles(probing: Probing, bits: int) -> list[Outcome]:
    """Round the inputs of the layers of each role.

    Args:
        probing: the running session, and how its probes are measured.
        bits: 2 to 8.

    Returns:
        The outcomes; with a plan, those that were measured before.

    Raises:
        EvaluationError: a probe has no outcome, or the inputs cannot be recorded.
    """
    from qsdm.measurement.inputs import by_role

    graph = probing.ready.space.graph
    roles = {
        role: QuantConfig(graph.denoiser, {}, None, dict.fromkeys(names, bits))
        for role, names in by_role(graph).items()
    }
    qconfigs = list(roles.values())
    probing.tell_plan(qconfigs)
    if not probing.plan:
        measured, full = probing.measure(qconfigs)
        loss = probing.loss(measured[0])
        harms = [harm_of(outcome, full, loss) for outcome in measured]
        probing.tell(table(roles, harms))
        probing.tell(outliers(probing))
    return probing.stored(qconfigs)


def table(roles: Mapping[str, QuantConfig], harms: Sequence[tuple[float, float]]) -> str:
    """Tabulate what rounding the inputs of each role does, the most harmful first.

    Args:
        roles: the configurations by role.
        harms: of each, with their paired standard errors.

    Returns:
        The table.
    """
    rows = [
        [
            role,
            str(len(qconfig.inputs)),
            f"{harm:+.4g} ± {error:.2g}",
            "no harm seen" if harm <= SIGNIFICANT_Z * error else "suffers",
        ]
        for (role, qconfig), (harm, error) in sorted(
            zip(roles.items(), harms, strict=True), key=lambda pair: -pair[1][0]
        )
    ]
    return text.table(["inputs of", "weights", "harm", ""], rows, are_texts=True)


def outliers(probing: Probing, rows: int = 8) -> str:
    """Record inputs, and list the layers with the largest outliers.

    Args:
        probing: the running session, and the time steps whose inputs are recorded.
        rows: number of lines.

    Returns:
        A text of several lines.

    Raises:
        EvaluationError: the inputs cannot be recorded.
    """
    from qsdm.engine import Failure
    from qsdm.measurement.inputs import InputsTask

    task = InputsTask(probing.protocol, probing.num_steps)
    [(_, ratios)] = probing.ready.pool.map([task])
    if isinstance(ratios, Failure):
        raise EvaluationError(f"the inputs of layers cannot be recorded: {ratios.reason}")
    pairs = zip(probing.ready.space.graph.weights, ratios.tolist(), strict=True)
    finite = [(ratio, weight.name) for weight, ratio in pairs if math.isfinite(ratio)]
    lines = [f"{ratio:>12.1f}  {name}" for ratio, name in sorted(finite, reverse=True)[:rows]]
    heading = "layers whose input has the largest outliers, over its standard deviation:"
    return "\n".join([heading, *lines])
