"""The denoiser's outputs on recorded inputs, for probes that draw no picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qsdm.outcome import EvaluationError, Outcome, Protocol
from qsdm.predictor.probes import STAGE
from qsdm.qconfig import QuantConfig
from qsdm.text import Log

if TYPE_CHECKING:
    from qsdm.measurement.session import Session

CHUNK = 8  # configurations per task of forwards


def missing_forwards(
    ready: Session, qconfigs: Sequence[QuantConfig], protocol: Protocol, steps: int
) -> list[QuantConfig]:
    """List probes whose outputs were not compared yet.

    Args:
        ready: the running session.
        qconfigs: the probes.
        protocol: of their drawings.
        steps: time steps.
    """
    from qsdm.measurement.forward import METRIC, version

    known = {
        outcome.qconfig.digest
        for outcome in ready.store.outcomes(protocol)
        if not outcome.lacks({METRIC: version(steps)})
    }
    return [qconfig for qconfig in qconfigs if qconfig.digest not in known]


def run_forwards(
    ready: Session, qconfigs: Sequence[QuantConfig], protocol: Protocol, steps: int, log: Log
) -> list[Outcome]:
    """Compare outputs, and store each probe as soon as a worker returns it.

    Args:
        ready: the running session.
        qconfigs: the probes.
        protocol: of their drawings.
        steps: time steps.
        log: receives the errors.

    Returns:
        The outcomes, in order.

    Raises:
        EvaluationError: a probe's output is not finite.
    """
    from tqdm import tqdm

    from qsdm.engine import Failure
    from qsdm.measurement.forward import METRIC, ForwardTask, outcome_of
    from qsdm.store.outcomes import OutcomeDatabase

    missing = missing_forwards(ready, qconfigs, protocol, steps)
    if missing:
        database = OutcomeDatabase(ready.store.path("outcomes.sqlite"))
        tasks = [
            ForwardTask(tuple(missing[i : i + CHUNK]), protocol, steps)
            for i in range(0, len(missing), CHUNK)
        ]
        with tqdm(desc=STAGE, total=len(missing), disable=None, unit="probe") as bar:
            for i, result in ready.pool.map(tasks):
                if isinstance(result, Failure):
                    raise EvaluationError(f"a probe has no outcome: {result.reason}")
                for qconfig, errors in zip(tasks[i].qconfigs, result, strict=True):
                    outcome = outcome_of(qconfig, protocol, errors, steps, STAGE)
                    database.add(outcome, protocol)
                    log({f"{STAGE}/{METRIC}": outcome.metrics[METRIC]})
                    bar.update()
    by_digest = {outcome.qconfig.digest: outcome for outcome in ready.store.outcomes(protocol)}
    return [by_digest[qconfig.digest] for qconfig in qconfigs]
