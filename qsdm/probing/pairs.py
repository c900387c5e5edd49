"""Pairs of weights or blocks, measured together and alone: see `qsdm.predictor.interactions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsdm import text
from qsdm.outcome import Objective, Outcome
from qsdm.predictor.probes import PAIRS
from qsdm.probing import Probing, called, together
from qsdm.qconfig import QuantMethod

if TYPE_CHECKING:
    from qsdm.predictor.interactions import Candidate


def probe_pairs(
    probing: Probing, proposed: Sequence[Candidate], method: QuantMethod
) -> list[Outcome]:
    """Quantize both parts of each pair, and each part alone.

    Args:
        probing: the running session, and how its probes are measured.
        proposed: the pairs.
        method: of all weights.

    Returns:
        The outcomes of the pairs; with a plan, those that were measured before.

    Raises:
        EvaluationError: a probe has no outcome.
    """
    space = probing.ready.space
    both = [together(space, sum(pair.groups, ()), method) for pair in proposed]
    parts = [group for pair in proposed for group in pair.groups]
    alone = [together(space, part, method) for part in dict.fromkeys(parts)]
    probing.tell_plan([*alone, *both])
    if not probing.plan:
        probing.measure(alone)
        probing.ready.measure(both, probing.protocol, PAIRS, probing.log)
        outcomes = probing.ready.store.outcomes(probing.protocol)
        probing.tell(table(outcomes, probing.objective, proposed))
    return probing.stored(both)


def table(outcomes: Sequence[Outcome], objective: Objective, proposed: Sequence[Candidate]) -> str:
    """Tabulate measured pairs, the greatest excess first.

    Args:
        outcomes: of one protocol.
        objective: whose loss is harm.
        proposed: the pairs that were proposed, with their predicted excess.

    Returns:
        The table.
    """
    from qsdm.predictor.interactions import interactions_of

    predicted = {frozenset(pair.groups): pair.excess for pair in proposed}
    rows = []
    for one in interactions_of(outcomes, objective):
        if (excess := predicted.get(frozenset(one.groups))) is not None:
            verdict = "more" if one.excess > 0 else "less"
            rows.append(
                [
                    " + ".join(map(called, one.groups)),
                    *one.harms,
                    one.joint,
                    f"{one.excess:+.1f} ± {one.standard_error:.1f}",
                    f"{excess:+.1f}",
                    verdict if one.is_confirmed else "not told apart from the sum",
                ]
            )
    heads = [PAIRS, "harm", "harm", "of both", "beyond the sum", "predicted", "together"]
    return text.table(heads, rows, ".1f")
