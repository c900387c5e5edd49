"""Each weight alone; of a denoiser of many weights, groups first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from qsdm.outcome import Outcome
from qsdm.predictor.probes import harm_of
from qsdm.probing import Probing, called, together
from qsdm.qconfig import QuantMethod

if TYPE_CHECKING:
    from qsdm.measurement.groups import Group


def probe_alone(probing: Probing, methods: Sequence[QuantMethod], max_probes: int) -> list[Outcome]:
    """Quantize each weight alone, or groups of which the most harmful ones are opened.

    Args:
        probing: the running session, and how its probes are measured.
        methods: each weight is probed under each of them.
        max_probes: number above which groups of weights are probed together.

    Returns:
        The outcomes; with a plan, those that were measured before.

    Raises:
        EvaluationError: a probe has no outcome.
    """
    from qsdm.measurement.groups import next_groups

    space = probing.ready.space
    grouped = len(space.graph.weights) > max_probes
    harm: dict[Group, float] = {}
    outcomes: list[Outcome] = []
    while groups := next_groups(space.graph, max_probes, harm):
        qconfigs = [together(space, group, method) for method in methods for group in groups]
        probing.tell_plan(qconfigs)
        if probing.plan:
            if grouped:
                probing.tell(
                    f"and up to {max_probes - len(groups)} parts of the most harmful groups"
                )
            return probing.stored(qconfigs)
        measured, full = probing.measure(qconfigs)
        outcomes += measured
        loss = probing.loss(measured[0])
        harm |= {
            group: harm_of(outcome, full, loss)[0]
            for group, outcome in zip(groups, measured, strict=False)  # under the first method
        }
        if not grouped:
            break
    probing.tell(most_harmful(harm))
    return outcomes


def most_harmful(harm: Mapping[Group, float], rows: int = 12) -> str:
    """List the most harmful probes.

    Args:
        harm: by group of weights.
        rows: number of lines.

    Returns:
        A text of several lines.
    """
    ordered = sorted(harm.items(), key=lambda pair: -pair[1])
    lines = [f"{loss:>12.4g}  {called(group)}" for group, loss in ordered[:rows]]
    return "\n".join([f"{len(ordered)} probes; the most harmful of them:", *lines])
