"""Which of the stored probes of a model are the best."""

from __future__ import annotations

from qsdm.cost import MethodTable
from qsdm.denoisers import ModelError
from qsdm.measurement.labels import Bank, metrics_of, of_today
from qsdm.outcome import Objective, Protocol
from qsdm.predictor.probes import DISTANCES, ProbeError, Probes, is_probe, probes_of
from qsdm.prompts import PromptsError


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
    digests = {outcome.protocol for outcome in probed}
    protocols = [protocol for digest, protocol in bank.protocols.items() if digest in digests]
    protocols.sort(key=lambda p: (is_current(bank, p), p.num_images), reverse=True)
    reason: ProbeError | None = None
    for measure in (objective, *DISTANCES):
        names = [measure] if isinstance(measure, str) else metrics_of(objective)
        measured = {
            outcome.protocol
            for outcome in probed
            if all(outcome.metrics.get(name) is not None for name in names)
        }
        for protocol in protocols:
            if protocol.digest not in measured:
                continue
            try:
                return probes_of(bank.space, table, bank.outcomes, protocol, measure)
            except ProbeError as error:
                reason = reason or error
    denoiser = bank.space.graph.denoiser
    raise reason or ProbeError(
        f"no weight of {denoiser!r} was measured alone: run python -m qsdm.probe +model={denoiser}"
    )


def is_current(bank: Bank, protocol: Protocol) -> bool:
    """Whether pictures would be drawn in the same way today.

    Args:
        bank: of the model.
        protocol: of some of its outcomes.
    """
    if bank.model is None:
        return True
    try:
        return protocol == of_today(protocol, bank.model)
    except (ModelError, PromptsError):  # nothing can be drawn today
        return False
