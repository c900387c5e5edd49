"""Several pipelines on the same captions and starting noise: what each metric says of each pair.

The first pipeline is the reference. Pictures of the others are compared with its pictures one by
one (PSNR and other metrics of fidelity), and all metrics of every pair as paired differences (see
`qsdm.measurement.paired`). The driver scores pictures while workers draw the next ones.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from qsdm.engine import Engine
from qsdm.measurement.contender import Contender, drawing_key
from qsdm.measurement.paired import difference
from qsdm.measurement.pictures import Cost, Pictures, PicturesStart, Span, draw
from qsdm.measurement.protocol import of_pictures
from qsdm.measurement.scoring import ScoredShard, digests, outcome_of
from qsdm.metrics import Metric, description
from qsdm.outcome import Outcome
from qsdm.prompts import Prompt
from qsdm.qconfig import QuantConfig

NUM_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Setup:
    """What all pipelines of a comparison share.

    Attributes:
        folder: of the pictures.
        prompts: as many as there are; from the first again after the last.
        metrics: by name.
        seed_set: of the starting noise.
        num_images: drawings of each pipeline.
        batch_size: drawings at a time, at most.
        shard: drawings per file.
        engine: where workers run.
        load: loads the pipeline of a contender, in a worker.
        driver: id of this process.
    """

    folder: Path
    prompts: Sequence[Prompt]
    metrics: Mapping[str, Metric]
    seed_set: int
    num_images: int
    batch_size: int
    shard: int
    engine: Engine
    load: Callable[[Contender], Any]
    driver: int

    @property
    def captions(self) -> list[str]:
        """One text per drawing."""
        return [str(prompt) for prompt in of_pictures(self.prompts, self.num_images)]

    @property
    def descriptions(self) -> dict[str, dict[str, str | bool | int]]:
        """What a table shows of each metric, by name."""
        return {name: description(metric) for name, metric in self.metrics.items()}

    def pictures(self, contender: Contender) -> Pictures:
        """The files of a contender's pictures, which may be missing.

        Args:
            contender: the pipeline.

        Raises:
            ModelError: its files are missing.
        """
        protocol = contender.protocol(self.prompts, self.seed_set, self.num_images)
        folder = self.folder / drawing_key(protocol, self.prompts)
        return Pictures(folder, protocol, self.shard)


@dataclass(frozen=True, slots=True)
class ContenderOutcome:
    """What came out for one pipeline.

    Attributes:
        contender: the pipeline.
        pictures: its files.
        outcome: metrics of all pictures, and of halves.
        fidelity: of the reference: names of the metrics that compare single pictures with it, and
            so are not defined for itself. Empty for the others.
        per_drawing: metrics of fidelity, by name; a value for each drawing (of a video, the mean
            of its frames). Empty for the reference.
        costs: of each file.
        size_bytes: of the denoiser's weight files; None if unknown.
    """

    contender: Contender
    pictures: Pictures
    outcome: Outcome
    fidelity: Sequence[str]
    per_drawing: Mapping[str, np.ndarray]
    costs: Sequence[Cost]
    size_bytes: int | None

    @property
    def picture_s(self) -> float:
        """Seconds for one drawing: the median of the files, as the first one warms up."""
        spans = self.pictures.spans()
        return statistics.median(
            cost.drawing_s / (stop - start)
            for cost, (start, stop) in zip(self.costs, spans, strict=True)
        )

    @property
    def peak_bytes(self) -> int | None:
        """The most memory that a worker used; None if unknown."""
        peaks = [cost.peak_bytes for cost in self.costs if cost.peak_bytes is not None]
        return max(peaks) if peaks else None


def measure(
    setup: Setup, contender: Contender, reference: ContenderOutcome | None = None
) -> ContenderOutcome:
    """Draw the pictures of a pipeline that are missing, and score all of them.

    Args:
        setup: what all pipelines share.
        contender: the pipeline.
        reference: whose pictures its own are compared with; None if it is the reference.

    Returns:
        Its outcome and costs.

    Raises:
        EngineError: the pipeline cannot be loaded.
        EvaluationError: a picture or a metric is not finite.
        MetricError: a metric lacks a network or file.
        StoreError: a file cannot be written.
    """
    pictures = setup.pictures(contender)
    protocol, captions = pictures.protocol, setup.captions
    missing = set(pictures.missing())
    shards: dict[Span, ScoredShard] = {}

    def score(span: Span) -> None:
        began = time.perf_counter()
        images = np.asarray(pictures.read(span))
        full = None if reference is None else np.asarray(reference.pictures.read(span))
        texts = [text for text in captions[slice(*span)] for _ in range(protocol.frames)]
        features = {n: metric.features(images, texts, full) for n, metric in setup.metrics.items()}
        about = {"drawing_s": pictures.cost(span).drawing_s}
        about["scoring_s"] = round(time.perf_counter() - began, 4)
        shards[span] = ScoredShard(features, digests(images), about)

    prompts = of_pictures(setup.prompts, setup.num_images)
    start = PicturesStart(contender, protocol, prompts, setup.batch_size, setup.load, setup.driver)
    with tqdm(desc=contender.name, total=setup.num_images, disable=None, unit="picture") as bar:
        for span in (span for span in pictures.spans() if span not in missing):
            score(span)
            bar.update(span[1] - span[0])
        for span in draw(pictures, start, setup.engine):
            score(span)
            bar.update(span[1] - span[0])
    ordered = [shards[span] for span in pictures.spans()]
    full = QuantConfig(contender.model.name, {})
    outcome = outcome_of(full, protocol, setup.metrics, ordered)
    features = {
        name: np.concatenate([shard.features[name] for shard in ordered]) for name in setup.metrics
    }
    if reference is None:
        own = [name for name, values in features.items() if not values.shape[1]]
        per_drawing = {}
    else:
        own = []
        per_drawing = {
            name: features[name].reshape(-1, protocol.frames).mean(1) for name in reference.fidelity
        }
    costs = [pictures.cost(span) for span in pictures.spans()]
    size = contender.size_bytes
    return ContenderOutcome(contender, pictures, outcome, own, per_drawing, costs, size)


def changed_most(setup: Setup, measured: Sequence[ContenderOutcome]) -> list[int]:
    """Choose the drawings that differ most from those of the reference, by the first such metric.

    Args:
        setup: of the comparison.
        measured: the reference and the others; the one that changed a drawing most counts.

    Returns:
        Numbers of at most `NUM_SHOWN` drawings, each with another caption, the worst first.
    """
    name = measured[0].fidelity[0]
    sign = -1 if setup.metrics[name].larger_is_better else 1
    worst = np.max([sign * other.per_drawing[name] for other in measured[1:]], axis=0)
    captions = setup.captions
    chosen: dict[str, int] = {}
    for number in np.argsort(-worst, kind="stable"):
        chosen.setdefault(captions[number], int(number))
        if len(chosen) == NUM_SHOWN:
            break
    return list(chosen.values())


def differences(setup: Setup, measured: Sequence[ContenderOutcome]) -> list[dict[str, Any]]:
    """Compare every two pipelines in every metric.

    Args:
        setup: of the comparison.
        measured: the reference and the others.

    Returns:
        For each pair and metric that is defined for both: names (of ``second`` minus ``first``),
        value, standard_error, low and high ends of the 95 % interval, and the verdict on
        ``second``.
    """
    rows = []
    for first, second in itertools.combinations(measured, 2):
        for name, metric in setup.metrics.items():
            away = difference(second.outcome, first.outcome, name)
            if away is not None:
                low, high = away.interval or (None, None)
                rows.append(
                    {
                        "first": first.contender.name,
                        "second": second.contender.name,
                        "metric": name,
                        "value": away.value,
                        "standard_error": away.standard_error,
                        "low": low,
                        "high": high,
                        "verdict": away.verdict(metric.larger_is_better),
                    }
                )
    return rows
