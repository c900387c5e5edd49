"""Which of the stored probes of a model are the best."""

from __future__ import annotations

from qsdm.cost import MethodTable
from qsdm.measurement.labels import Bank, is_of_today
from qsdm.outcome import Objective
from qsdm.predictor.probes import DISTANCES, ProbeError, Probes, is_probe, probes_of


def choose_probes(bank: Bank, table: MethodTable, objective: Objective) -> Probes:
    """Choose the best complete probes of a space: those in units of the objective before distances,
    those of today's captions before others, and those of most pictures.

    Args:
        bank: everything that was measured of the model.
        table: errors of the space's weights under the probed methods.
        objective: whose loss is harm.

    Returns:
        The probes.

    Raises:
        ProbeError: no complete probes are there; the message tells of those that lack least.
    """
    probed = [outcome for outcome in bank.outcomes if is_probe(outcome)]
    full = [outcome for outcome in bank.outcomes if not outcome.qconfig.methods]
    model = bank.model
    reason: ProbeError | None = None
    measures: list[Objective | str] = [objective, *DISTANCES]
    for measure in measures:
        names = [measure] if isinstance(measure, str) else measure.metrics
        measured = [
            outcome
            for outcome in probed
            if all(outcome.metrics.get(name) is not None for name in names)
        ]
        digests = {outcome.protocol for outcome in measured}
        protocols = [protocol for digest, protocol in bank.protocols.items() if digest in digests]
        for protocol in sorted(
            protocols,
            key=lambda p: (model is None or is_of_today(p, model), p.num_images),
            reverse=True,
        ):
            try:
                return probes_of(bank.space, table, [*full, *measured], protocol, measure)
            except ProbeError as error:
                reason = reason or error
    denoiser = bank.space.graph.denoiser
    raise reason or ProbeError(
        f"no weight of {denoiser!r} was measured alone: run python -m qsdm.probe +model={denoiser}"
    )
