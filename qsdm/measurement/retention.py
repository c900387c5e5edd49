"""How much of a LoRA's effect configurations retain, measured once and kept in the store.

Of the adapter's effect e on the denoiser's output (`qsdm.measurement.adapters`), which is c under a
configuration, ``1 - |c - e|² / |e|²`` is retained: 1 where the adapter does what it did,
0 where it does nothing, less where it does something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qsdm.denoisers import prompts_of
from qsdm.measurement.paired import Difference
from qsdm.measurement.protocol import protocol_of
from qsdm.outcome import SIGNIFICANT_Z, EvaluationError, Protocol
from qsdm.qconfig import QuantConfig
from qsdm.quant.calibrated import fitted_version
from qsdm.store.schemas import LORA, Lora

if TYPE_CHECKING:
    from qsdm.measurement.session import Session, Subject

CHUNK = 8  # configurations per task


@dataclass(frozen=True, slots=True)
class Adapter:
    """The file of a LoRA.

    Attributes:
        path: of the file.
        digest: of its content.

    Raises:
        AdapterError: there is no such file, or it holds no LoRA.
    """

    path: Path
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        from qsdm.measurement.adapters import keys_of

        keys_of(self.path)
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        object.__setattr__(self, "digest", digest[:16])

    def artifact(self, protocol: str = "*", num_steps: int | str = "*") -> str:
        """Name the artifact that holds what was measured of it.

        Args:
            protocol: digest of the drawings; by default, a pattern of any.
            num_steps: time steps of each; by default, any.
        """
        return f"lora/{self.digest}-{protocol[:16]}-{num_steps}.json"


@dataclass(frozen=True, slots=True)
class Retaining:
    """Measures what configurations retain.

    Attributes:
        ready: the running session.
        adapter: the LoRA.
        protocol: of the drawings whose inputs are recorded.
        num_steps: time steps of each.
    """

    ready: Session
    adapter: Adapter
    protocol: Protocol
    num_steps: int

    @property
    def path(self) -> Path:
        """Of the artifact."""
        name = self.adapter.artifact(self.protocol.digest, self.num_steps)
        return self.ready.store.path(name)

    def stored(self) -> dict[str, tuple[float, float]]:
        """What the store holds: retention and standard error by a configuration's digest."""
        if not self.path.exists():
            return {}
        return dict(LORA.read(self.path, self.ready.model.name)["retention"])

    def missing(self, qconfigs: Sequence[QuantConfig]) -> list[QuantConfig]:
        """List configurations that were not measured yet.

        Args:
            qconfigs: the configurations.
        """
        stored = self.stored()
        return [qconfig for qconfig in qconfigs if qconfig.digest not in stored]

    def measure(self, qconfigs: Sequence[QuantConfig]) -> dict[str, Difference]:
        """Measure configurations, and store each as soon as a worker returns it.

        Args:
            qconfigs: the configurations.

        Returns:
            Retention by digest, with its standard error over drawings.

        Raises:
            EvaluationError: an output is not finite, or the adapter has no effect.
            EngineError: the file is of another denoiser.
        """
        from tqdm import tqdm

        from qsdm.engine import Failure
        from qsdm.measurement.adapters import AdapterTask

        missing, retention = self.missing(qconfigs), self.stored()
        path = self.adapter.path.resolve()
        tasks = [
            AdapterTask(tuple(missing[i : i + CHUNK]), self.protocol, self.num_steps, path)
            for i in range(0, len(missing), CHUNK)
        ]
        with tqdm(desc="lora", total=len(missing), disable=None, unit="configuration") as bar:
            for i, result in self.ready.pool.map(tasks):
                if isinstance(result, Failure):
                    raise EvaluationError(f"what is left of the LoRA is unknown: {result.reason}")
                *rows, whole = result
                for qconfig, row in zip(tasks[i].qconfigs, rows, strict=True):
                    retention[qconfig.digest] = retained(row, whole)
                self._write(retention)
                bar.update(len(rows))
        return {q.digest: Difference(*retention[q.digest]) for q in qconfigs}

    def _write(self, retention: Mapping[str, tuple[float, float]]) -> None:
        from qsdm.store.provenance import provenance

        content: Lora = {
            "denoiser": self.ready.model.name,
            "file": self.adapter.path.name,
            "protocol": self.protocol.digest,
            "seed_set": self.protocol.seed_set,
            "num_images": self.protocol.num_images,
            "num_steps": self.num_steps,
            "retention": dict(retention),
            "provenance": provenance(),
        }
        LORA.write(self.path, content)


def in_percent(retention: Difference) -> str:
    """Write a retention with its 95 % interval.

    Args:
        retention: with its standard error.
    """
    half = SIGNIFICANT_Z * (retention.standard_error or 0.0)
    return f"{100 * retention.value:.1f} ± {100 * half:.1f} %"


def drawings_of(subject: Subject, seed_set: int, num_images: int) -> Protocol:
    """Describe the drawings whose inputs are recorded, as `Session.drawing` does with workers.

    Args:
        subject: model, space and store.
        seed_set: of the starting noise.
        num_images: drawings.

    Returns:
        The protocol.
    """
    plain = protocol_of(subject.model, prompts_of(subject.model), seed_set, num_images)
    return replace(plain, quantizer_version=fitted_version(subject.packed))


def retained(changes: np.ndarray, effects: np.ndarray) -> tuple[float, float]:
    """Compute what is retained of an effect.

    Args:
        changes: float64 [N], squares of how far N drawings' effects have changed.
        effects: float64 [N], squares of the effects themselves.

    Returns:
        Retention, and its standard error: of leaving out one drawing after the other.
    """
    values = 1 - (changes.sum() - changes) / (effects.sum() - effects)
    error = np.sqrt((len(values) - 1) * values.var())
    return float(1 - changes.sum() / effects.sum()), float(error)
