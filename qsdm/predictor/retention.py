"""What configurations are predicted to retain of a LoRA's effect: losses of single weights add up.

What quantizing a weight does to the effect is nearly independent of what others do, so squares add
up. A method that was not probed loses what the nearest one does, times the ratio of both weight
errors. The sum is scaled to what uniform configurations were measured to lose.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qsdm.measurement.retention import Adapter, Retaining, drawings_of
from qsdm.outcome import LORA_RETENTION
from qsdm.qconfig import OutsideSpace, QuantConfig, QuantMethod, Space
from qsdm.store import StoreError
from qsdm.store.schemas import LORA, Lora

if TYPE_CHECKING:
    from qsdm.measurement.session import Session, Subject
    from qsdm.qconfig.cost import MethodTable


@dataclass(frozen=True, slots=True, eq=False)
class RetentionModel:
    """Predicts the retention of configurations.

    Attributes:
        losses: float64 [W, O], of each weight's options.
        name: of the metric.
        sign: more is better.
    """

    losses: np.ndarray
    name: str = LORA_RETENTION
    sign: int = 1

    def __call__(self, genes: np.ndarray) -> np.ndarray:
        """Predict.

        Args:
            genes: int64 [B, W].

        Returns:
            Retention, float64 [B].
        """
        retained: np.ndarray = 1 - self.losses[np.arange(genes.shape[1]), genes].sum(axis=1)
        return retained


@dataclass(frozen=True, slots=True, eq=False)
class ProbedRetention:
    """What `qsdm.probe` has measured of one adapter.

    Attributes:
        space: of the weights.
        adapter: the LoRA.
        content: what the store holds of it.
        alone: retention and standard error by weight and method, where it alone is quantized.
        whole: the same by method, where all weights have it.
    """

    space: Space
    adapter: Adapter
    content: Lora
    alone: Mapping[str, Mapping[QuantMethod, tuple[float, float]]]
    whole: Mapping[QuantMethod, tuple[float, float]]

    def measuring(self, ready: Session) -> Retaining:
        """Measure configurations as the probes were measured.

        Args:
            ready: the running session.

        Returns:
            What measures them.
        """
        drawings = ready.drawing(self.content["seed_set"], self.content["num_images"])
        return Retaining(ready, self.adapter, drawings, self.content["num_steps"])

    def model(self, table: MethodTable) -> RetentionModel:
        """Predict any configuration of the space.

        Args:
            table: errors of the weights under the methods.

        Returns:
            The model.
        """
        rows = {name: i for i, name in enumerate(table.weights)}
        column = {method: i for i, method in enumerate(table.methods)}
        weights = list(zip(self.space.graph.weights, self.space.options, strict=True))
        losses = np.zeros((len(weights), max(len(offered) for _, offered in weights)))
        for i, (weight, offered) in enumerate(weights):
            row = table.rel_error[rows[weight.name]]
            errors = {m: row[column[m.of_weight]] for m in offered}
            for o, method in enumerate(offered):
                losses[i, o] = loss_of(method, errors, self.alone[weight.name])
        uniform = [self.space.encode(self.space.uniform(method)) for method in self.whole]
        predicted = sum(1 - RetentionModel(losses)(np.stack(uniform))) if uniform else 0.0
        measured = sum(1 - value for value, _ in self.whole.values())
        scale = max(measured, 0.0) / predicted if predicted > 0 else 1.0
        return RetentionModel(losses * scale)


def loss_of(
    method: QuantMethod,
    errors: Mapping[QuantMethod, float],
    probed: Mapping[QuantMethod, tuple[float, float]],
) -> float:
    """Compute what a weight under a method loses of an adapter's effect.

    Args:
        method: of the weight.
        errors: of the weight under each method on offer.
        probed: retention and standard error by method; at least one.

    Returns:
        The loss; 0 without an error.
    """
    if method in probed:
        return max(1 - probed[method][0], 0.0)
    own = errors[method]
    known = [other for other in probed if errors[other] > 0]
    if own <= 0 or not known:
        return 0.0
    nearest = min(known, key=lambda other: abs(np.log(errors[other] / own)))
    return max(1 - probed[nearest][0], 0.0) * own / errors[nearest]


def read_retention(subject: Subject, file: Path) -> ProbedRetention:
    """Read what was measured of an adapter.

    Args:
        subject: model, space and store.
        file: of the LoRA.

    Returns:
        The probes.

    Raises:
        AdapterError: the file holds no LoRA.
        StoreError: the adapter was not probed, not of all weights, or on other weights.
    """
    adapter, space, name = Adapter(file), subject.space, subject.model.name
    command = f"run python -m qsdm.probe +model={name} lora={file}"
    paths = sorted(subject.store.path("lora").glob(Path(adapter.artifact()).name))
    if not paths:
        raise StoreError(f"what is left of {file.name} was not measured: {command}")
    current = [
        content
        for content in (LORA.read(path, name) for path in paths)
        if drawings_of(subject, content["seed_set"], content["num_images"]).digest
        == content["protocol"]
    ]
    if not current:
        raise StoreError(
            f"what is left of {file.name} was measured on other weights, or drawn in another way "
            f"than today: {command} again"
        )
    read = [probed_in(space, adapter, content) for content in current]
    best = max(read, key=lambda one: (len(one.alone), one.content["num_images"]))
    if missing := [w.name for w in space.graph.weights if w.name not in best.alone]:
        raise StoreError(
            f"what is left of {file.name} was measured for {len(best.alone)} of "
            f"{len(space.graph.weights)} weights, not for {missing[0]!r}: {command}"
        )
    return best


def probed_in(space: Space, adapter: Adapter, content: Lora) -> ProbedRetention:
    """Find the probes of a space's weights among what was measured.

    Args:
        space: of the weights.
        adapter: the LoRA.
        content: what the store holds of it.

    Returns:
        The probes; a weight that was not probed is missing.
    """
    retention, denoiser = content["retention"], space.graph.denoiser
    alone: dict[str, dict[QuantMethod, tuple[float, float]]] = {}
    for weight, offered in zip(space.graph.weights, space.options, strict=True):
        for method in offered:
            digest = QuantConfig(denoiser, {weight.name: method.of_weight}).digest
            if digest in retention:
                alone.setdefault(weight.name, {})[method] = retention[digest]
    whole: dict[QuantMethod, tuple[float, float]] = {}
    for method in space.methods:
        with contextlib.suppress(OutsideSpace):
            if (digest := space.uniform(method).digest) in retention:
                whole[method] = retention[digest]
    return ProbedRetention(space, adapter, content, alone, whole)
