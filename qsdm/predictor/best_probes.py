"""Which of the stored probes of a model are the best."""

from __future__ import annotations

from collections.abc import Sequence

from qsdm.measurement.labels import Bank, is_of_today
from qsdm.outcome import Objective, Outcome, Protocol
from qsdm.predictor.fused import fused
from qsdm.predictor.probes import DISTANCES, ProbeError, Probes, is_probe, probes_of
from qsdm.qconfig.cost import MethodTable

FEW = 64
"""Pictures below which distances steady probes: with 16, what is found without a label was 21
points better; with 64 or 256, ranks were no better (experiments/sample_efficiency)."""


def choose_probes(bank: Bank, table: MethodTable, objective: Objective) -> Probes:
    """Choose the best complete probes of a space: those in units of the objective before distances.

    Args:
        bank: everything that was measured of the model.
        table: errors of the space's weights under the probed methods.
        objective: whose loss is harm.

    Returns:
        The probes.

    Raises:
        ProbeError: no complete probes are there; the message tells of those that lack least.
    """
    return next(iter(best_of_each_fidelity(bank, table, objective).values()))


def best_of_each_fidelity(
    bank: Bank, table: MethodTable, objective: Objective
) -> dict[str, Probes]:
    """Choose the best complete probes of each fidelity: of today's captions before others, and
    those of most pictures. Those of the objective and of few pictures are steadied by the pictures'
    distances to full precision, if these were measured (see `qsdm.predictor.fused`).

    Args:
        bank: everything that was measured of the model.
        table: errors of the space's weights under the probed methods.
        objective: whose loss is harm.

    Returns:
        Probes by fidelity, those in units of the objective before distances.

    Raises:
        ProbeError: no complete probes are there; the message tells of those that lack least.
    """
    probed = [outcome for outcome in bank.outcomes if is_probe(outcome)]
    full = [outcome for outcome in bank.outcomes if outcome.qconfig.is_full]
    model = bank.model
    reason: ProbeError | None = None
    measures: list[Objective | str] = [objective, *DISTANCES]
    best: dict[str, Probes] = {}
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
                probes = probes_of(bank.space, table, [*full, *measured], protocol, measure)
            except ProbeError as error:
                reason = reason or error
                continue
            if probes.fidelity == "full" and probes.num_images < FEW:
                probes = steadied(probes, bank, table, measured, protocol)
            best.setdefault(probes.fidelity, probes)
            break
    if best:
        return best
    denoiser = bank.space.graph.denoiser
    raise reason or ProbeError(
        f"no weight of {denoiser!r} was measured alone: run python -m qsdm.probe +model={denoiser}"
    )


def steadied(
    probes: Probes,
    bank: Bank,
    table: MethodTable,
    probed: Sequence[Outcome],
    protocol: Protocol,
) -> Probes:
    """Combine probes with the best distance that was measured of all their pictures.

    Args:
        probes: in units of the objective.
        bank: everything that was measured of the model.
        table: errors of the space's weights under the probed methods.
        probed: outcomes of the probes.
        protocol: of their pictures.

    Returns:
        The combination; the same probes without such a distance.
    """
    for name in DISTANCES:
        try:
            distances = probes_of(bank.space, table, probed, protocol, name)
        except ProbeError:
            continue
        if distances.fidelity == "drawn":
            return fused(probes, distances)
    return probes
