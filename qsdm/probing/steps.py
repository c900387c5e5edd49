"""Bins of the sampler's steps: the denoiser is quantized within one of them, and not outside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qsdm.outcome import Outcome
from qsdm.probing import Probing
from qsdm.qconfig import QuantConfig
from qsdm.qconfig.steps import StepBin, bin_name, equal_bins
from qsdm.store import StoreError
from qsdm.store.files import read_json
from qsdm.store.schemas import STEPS, STEPS_FILE, StepRow, StepTable

WHOLE = "all"  # name of the row of all steps


def probe_steps(probing: Probing, qconfig: QuantConfig, num_bins: int) -> list[Outcome]:
    """Draw with a configuration in one bin of steps after the other, and in all of them.

    Writes ``steps.json``.

    Args:
        probing: the running session, and how its probes are measured.
        qconfig: without bins of its own.
        num_bins: 1 to the number of the sampler's steps.

    Returns:
        The outcomes of the bins, and of the configuration in all steps; with a plan, those that
        were measured before.

    Raises:
        EvaluationError: a probe has no outcome.
        ValueError: there are more bins than steps.
    """
    edges = equal_bins(num_bins, probing.protocol.steps)
    bins = [StepBin(start, stop, qconfig) for start, stop in edges]
    within = [QuantConfig(qconfig.denoiser, {}, steps=(one,)) for one in bins]
    qconfigs = [*within, qconfig]
    probing.tell_plan(qconfigs)
    if not probing.plan:
        measured, full = probing.measure(qconfigs)
        assert full is not None  # pictures were drawn
        table = table_of(probing, bins, measured, full)
        STEPS.write(probing.ready.store.path(STEPS_FILE), table)
    return probing.stored(qconfigs)


def table_of(
    probing: Probing, bins: Sequence[StepBin], measured: Sequence[Outcome], full: Outcome
) -> StepTable:
    """Describe what each bin suffers.

    Args:
        probing: the running session.
        bins: the bins, one configuration in all of them.
        measured: outcomes of the bins, and of the configuration in all steps.
        full: outcome of full precision.

    Returns:
        What the store's file holds.
    """
    from qsdm.measurement.paired import difference

    num_steps = probing.protocol.steps
    names = [bin_name(i, len(bins)) for i in range(len(bins))] + [WHOLE]
    whole = StepBin(0, 1, bins[0].qconfig)
    rows: list[StepRow] = []
    for name, one, outcome in zip(names, [*bins, whole], measured, strict=True):
        changes = {metric: difference(outcome, full, metric) for metric in outcome.metrics}
        rows.append(
            {
                "name": name,
                "start": one.start,
                "stop": one.stop,
                "num_steps": sum(one.holds(step, num_steps) for step in range(num_steps)),
                "metrics": dict(outcome.metrics),
                "standard_errors": {
                    metric: outcome.standard_error(metric) for metric in outcome.halves
                },
                "differences": {
                    metric: [change.value, change.standard_error]
                    for metric, change in changes.items()
                    if change is not None
                },
                "qconfig": outcome.qconfig.digest,
            }
        )
    return {
        "denoiser": probing.ready.model.name,
        "protocol": probing.protocol.to_json(),
        "qconfig": whole.qconfig.to_json(),
        "full": dict(full.metrics),
        "rows": rows,
    }


def read_config(path: Path) -> QuantConfig:
    """Read the configuration that is probed.

    Args:
        path: of its JSON.

    Raises:
        StoreError: there is none, or it has bins of its own.
    """
    if not path.is_file():
        raise StoreError(f"no file {path}: give config=FILE with one configuration")
    try:
        qconfig = QuantConfig.from_json(read_json(path))
    except ValueError as error:
        raise StoreError(f"{path} holds no configuration ({error})") from error
    if qconfig.steps or qconfig.is_full:
        what = "has bins of steps of its own" if qconfig.steps else "quantizes nothing"
        raise StoreError(f"the configuration in {path} {what}: give another one")
    return qconfig
