"""The kinds of probes: what is quantized alone, measured and told. `qsdm.probe` is their front.

- ``alone``: each weight, or groups of weights of a large denoiser
- ``pairs``: two weights or blocks at a time
- ``roles``: inputs of the layers of each role
- ``steps``: all weights in a part of the sampler's steps
- ``forwards``: the denoiser's outputs instead of pictures

A kind is a function from a `Probing`, and what is its own, to outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qsdm.outcome import EvaluationError, Objective, Outcome, Protocol
from qsdm.predictor.probes import DISTANCES, STAGE
from qsdm.qconfig import QuantConfig, QuantMethod, Space
from qsdm.text import Log

if TYPE_CHECKING:
    from qsdm.measurement.groups import Group
    from qsdm.measurement.session import Session
    from qsdm.metrics import Metric


@dataclass(frozen=True, slots=True)
class Probing:
    """A running session, and how its probes are measured.

    Attributes:
        ready: the running session.
        protocol: of the drawings.
        objective: whose loss is harm.
        fidelity: ``forward``, ``drawn`` or ``full``.
        num_steps: time steps at which ``forward`` compares outputs.
        plan: whether to print only what is missing.
        num_workers: of the engine.
        price_per_hour: of one worker, for the plan.
        tell: prints a text.
        log: receives the metrics of every probe.
    """

    ready: Session
    protocol: Protocol
    objective: Objective
    fidelity: str
    num_steps: int
    plan: bool
    num_workers: int | None
    price_per_hour: float | None
    tell: Callable[[str], None]
    log: Log

    @property
    def full(self) -> QuantConfig:
        """Full precision."""
        return QuantConfig(self.ready.model.name, {})

    def tell_plan(self, qconfigs: Sequence[QuantConfig]) -> None:
        """Print what is going to be drawn, or how many forwards are going to be run.

        Args:
            qconfigs: the probes.
        """
        from qsdm.measurement.plan import History, plan_of
        from qsdm.measurement.session import full_name
        from qsdm.probing.forwards import missing_forwards

        ready, protocol, steps = self.ready, self.protocol, self.num_steps
        if self.fidelity == "forward":
            missing = missing_forwards(ready, qconfigs, protocol, steps)
            self.tell(
                f"plan: {len(missing):,} probes x {steps} time steps = {len(missing) * steps:,} "
                f"forwards of {protocol.num_images} drawings; no picture"
            )
            return
        history = History(ready.store.outcomes(), ready.store.protocols())
        has_full = ready.store.path(full_name(protocol)).exists()
        planned = plan_of(history, [self.full, *qconfigs], protocol, ready.versions, has_full)
        planned = replace(planned, num_workers=self.num_workers, price_per_hour=self.price_per_hour)
        self.tell(str(planned))

    def measure(self, qconfigs: Sequence[QuantConfig]) -> tuple[list[Outcome], Outcome | None]:
        """Measure probes, or read those that were measured before.

        Args:
            qconfigs: the probes.

        Returns:
            Their outcomes in order, and that of full precision; None for forwards.

        Raises:
            EvaluationError: a probe has no outcome.
        """
        from qsdm.probing.forwards import run_forwards

        if self.fidelity == "forward":
            steps = self.num_steps
            return run_forwards(self.ready, qconfigs, self.protocol, steps, self.log), None
        done = self.ready.measure([self.full, *qconfigs], self.protocol, STAGE, log=self.log)
        return [done.of(qconfig) for qconfig in qconfigs], done.of(self.full)

    def stored(self, qconfigs: Sequence[QuantConfig]) -> list[Outcome]:
        """Read the outcomes that the store holds.

        Args:
            qconfigs: the probes.

        Returns:
            Those of them that were measured, in order.
        """
        stored = {o.qconfig.digest: o for o in self.ready.store.outcomes(self.protocol)}
        return [stored[q.digest] for q in qconfigs if q.digest in stored]

    def loss(self, outcome: Outcome) -> Objective | str:
        """What is compared with full precision.

        Args:
            outcome: of a probe.

        Returns:
            The objective, or the name of a distance.

        Raises:
            EvaluationError: the probe has no distance to full precision.
        """
        return self.objective if self.fidelity == "full" else distance_in(outcome.metrics)


def together(space: Space, group: Group, method: QuantMethod) -> QuantConfig:
    """Quantize a group of weights; all others keep full precision.

    Args:
        space: of the weights.
        group: their names.
        method: for each of them, or its substitute where it is not on offer.

    Returns:
        The configuration.

    Raises:
        OutsideSpace: no method of these bits is on offer.
    """
    uniform = space.uniform(method).methods
    return QuantConfig(space.graph.denoiser, {name: uniform[name] for name in group})


def nearness_of(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Select metrics that compare each picture with that of full precision.

    Args:
        metrics: of the model, by name.

    Returns:
        Those of them that compare; PSNR if there is none.
    """
    from qsdm.metrics.fidelity import Psnr

    found = {name: metric for name, metric in metrics.items() if name in DISTANCES}
    return found or {"psnr": Psnr()}


def distance_in(metrics: Mapping[str, float | None]) -> str:
    """Name the best distance to full precision among metrics.

    Args:
        metrics: of a probe.

    Raises:
        EvaluationError: there is none.
    """
    for name in DISTANCES:
        if metrics.get(name) is not None:
            return name
    raise EvaluationError(f"a probe has no distance to full precision (got {', '.join(metrics)})")


def called(group: Group) -> str:
    """Name a group of weights.

    Args:
        group: their names.
    """
    return group[0] + (f" and {len(group) - 1} more" if len(group) > 1 else "")
