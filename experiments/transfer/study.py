"""What do other denoisers' labels say of a denoiser that has none, or few?

    for name in emoji_unet emoji_mmdit emoji_pixart; do
        python -m qsdm.trace +model=$name
        python -m qsdm.calibrate +model=$name
    done
    python experiments/transfer/study.py

Leaves one pipeline out at a time. Its closed model starts from what the others teach (``from``),
from its weights' errors alone (``errors``), or from probes of its own (``probes-64``), and learns
from 0, 8, 40, 80 or all of its labels. Rank correlation with its test set on the labels' noise:
mean and deviation of five draws of the labels.
"""

from __future__ import annotations

import argparse

import numpy as np

from qsdm.outcome import Objective
from qsdm.predictor import baselines
from qsdm.predictor.encode import encode
from qsdm.predictor.informed import Lessons
from qsdm.predictor.probes import Probes, probes_of
from qsdm.predictor.scores import srcc
from qsdm.predictor.transfer import Teacher, transferred
from qsdm.workspace import named

ZOO = ("emoji_unet", "emoji_mmdit", "emoji_pixart")
QUALITY = Objective({"fd_lite0": -1})
COUNTS = (0, 8, 40, 80, 240)
DRAWS = 5


class Pipeline:
    """A pipeline's outcomes."""

    def __init__(self, name: str, store: str) -> None:
        workspace = named(name, store=store)
        self.name, self.space, self.table = name, workspace.space, workspace.table
        self.encoding = encode(self.space, self.table)
        bank = workspace.bank()
        self.labels = bank.labels(QUALITY)
        protocol = self.labels.protocol
        (self.test,) = (t for t in bank.tests(QUALITY) if t.protocol == protocol)
        own = [o for o in bank.outcomes if o.protocol == protocol.digest]
        self.alone = [o for o in own if len(o.qconfig.methods) < 2]
        (full,) = (o for o in own if not o.qconfig.methods)
        self.full = QUALITY(full.metrics)

    def probes(self, num_images: int) -> Probes:
        protocol = self.labels.protocol
        return probes_of(self.space, self.table, self.alone, protocol, QUALITY, num_images)

    def lessons(self, probes: Probes | None) -> Lessons:
        labels = self.labels
        return Lessons.of(self.encoding, self.table, QUALITY, labels, probes, self.full)

    def teacher(self) -> Teacher:
        model = self.lessons(self.probes(256)).model(np.arange(len(self.labels)))
        return Teacher.of(self.encoding, self.table, model)

    def ranks(self, probes: Probes | None, count: int) -> list[float]:
        lessons, scores = self.lessons(probes), []
        for draw in range(DRAWS if 0 < count < len(self.labels) else 1):
            rows = np.random.default_rng(draw).permutation(len(self.labels))[:count]
            mean, _ = lessons.model(rows).predict(self.encoding.one_hot(self.test.genes))
            scores.append(srcc(mean, self.test.values))
        return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="store")
    args = parser.parse_args()
    pipelines = {name: Pipeline(name, args.store) for name in ZOO}
    teachers = {name: pipeline.teacher() for name, pipeline in pipelines.items()}
    print("| pipeline | starts from | " + " | ".join(f"{count} labels" for count in COUNTS) + " |")
    print("|---|---|" + "---|" * len(COUNTS))
    for name, pipeline in pipelines.items():
        others = [teacher for other, teacher in teachers.items() if other != name]
        learned = transferred(others, pipeline.encoding, pipeline.table)
        starts = {"from": learned, "errors": None, "probes-64": pipeline.probes(64)}
        for start, probes in starts.items():
            cells = []
            for count in COUNTS:
                scores = pipeline.ranks(probes, count)
                spread = f" ± {np.std(scores):.3f}" if len(scores) > 1 else ""
                cells.append(f"{np.mean(scores):.3f}{spread}")
            print(f"| `{name}` | {start} | " + " | ".join(cells) + " |", flush=True)
        bits = srcc(baselines.avg_bits(pipeline.space, pipeline.test.genes), pipeline.test.values)
        measured = pipeline.probes(256).harm[:, 0]
        alone = srcc(learned.harm[:, 0], measured)
        print(
            f"`{name}`: average bits {bits:.3f}; rank correlation of the weights' predicted "
            f"damage and that of probes of 256 pictures {alone:.3f}"
        )


if __name__ == "__main__":
    main()
