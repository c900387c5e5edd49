"""The pictures of a pipeline, drawn by workers of its own and kept in files.

    store/<model>/pictures/compare/<how they are drawn>/<first>-<last + 1>.safetensors

Each file says how long drawing it took and how much memory its worker had used by then. Workers
only draw, so neither contains anything else than the pipeline.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qsdm.denoisers import ModelError
from qsdm.engine import Engine, EngineError, Failure
from qsdm.graph import Graph
from qsdm.measurement.contender import Contender
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.protocol import seed_of
from qsdm.measurement.worker import read_full
from qsdm.outcome import EvaluationError, Protocol
from qsdm.prompts import Prompt
from qsdm.qconfig import QuantConfig
from qsdm.store import StoreError
from qsdm.store.files import decode, warn_once
from qsdm.store.header import read_header
from qsdm.store.tensors import write_tensors

Span = tuple[int, int]
"""Number of the first drawing, and one after the last."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What some drawings took.

    Attributes:
        drawing_s: seconds, without loading the pipeline.
        load_s: seconds that the worker needed to load the pipeline.
        peak_bytes: the most memory that the worker had used by then: of the GPU by torch's
            allocator, or of the process (Python and libraries included); None where the process
            also did something else.
        device: cuda or cpu.
    """

    drawing_s: float
    load_s: float
    peak_bytes: int | None
    device: str


@dataclass(frozen=True, slots=True)
class Drawn:
    """The result of a task.

    Attributes:
        images: uint8 [N * frames, H, W, 3].
        cost: of drawing them.
    """

    images: np.ndarray
    cost: Cost


@dataclass(frozen=True, slots=True)
class PicturesStart:
    """What a worker needs to draw with one pipeline.

    Attributes:
        contender: the pipeline.
        protocol: how the pictures are drawn.
        prompts: one per drawing.
        batch_size: number of drawings at a time, at most.
        load: loads the pipeline of a contender.
        driver: id of the process that starts the workers.
    """

    contender: Contender
    protocol: Protocol
    prompts: Sequence[Prompt]
    batch_size: int
    load: Callable[[Contender], Any]
    driver: int

    def __call__(self) -> Callable[[Span], Drawn]:
        """Prepare for tasks.

        Returns:
            A function from a span of drawings to their pictures.
        """
        model = self.contender.model

        @cache
        def loaded() -> tuple[Drawer, float]:
            began = time.perf_counter()
            try:
                pipeline = self.load(self.contender)
            except (ModelError, StoreError) as error:  # no other task can be done either
                raise EngineError(f"{self.contender.name}: {error}") from error
            drawer = Drawer(model, Graph(model.name, (), ()), None, self.batch_size, pipeline)
            return drawer, time.perf_counter() - began

        def work(span: Span) -> Drawn:
            drawer, load_s = loaded()
            seed_set = self.protocol.seed_set
            drawings = [Drawing(i, self.prompts[i], seed_of(seed_set, i)) for i in range(*span)]
            began = time.perf_counter()
            images = drawer.draw(QuantConfig(model.name, {}), drawings, self.protocol.frames)
            seconds = time.perf_counter() - began
            device = "cuda" if torch.cuda.is_available() else "cpu"
            alone = os.getpid() != self.driver
            cost = Cost(
                round(seconds, 4), round(load_s, 3), peak_bytes() if alone else None, device
            )
            return Drawn(images, cost)

        return work


def peak_bytes() -> int | None:
    """The most memory that this process has used so far.

    Returns:
        Bytes on the GPU where there is one, else of the process; None where the system does not
        tell.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if os.uname().sysname == "Darwin" else peak * 1024


@dataclass(frozen=True, slots=True)
class Pictures:
    """Files of pictures that are drawn in the same way.

    Attributes:
        folder: of these pictures alone.
        protocol: how they are drawn.
        size: drawings per file.
    """

    folder: Path
    protocol: Protocol
    size: int

    def spans(self) -> list[Span]:
        """List the drawings of each file."""
        num = self.protocol.num_images
        return [(start, min(start + self.size, num)) for start in range(0, num, self.size)]

    def missing(self) -> list[Span]:
        """List the spans that are not drawn yet, or whose file is damaged."""
        return [span for span in self.spans() if not self._is_whole(span)]

    def add(self, span: Span, drawn: Drawn) -> None:
        """Write pictures.

        Args:
            span: their numbers.
            drawn: the pictures, and what they took.

        Raises:
            EvaluationError: they are of another number.
            StoreError: they cannot be written.
        """
        if len(drawn.images) != self._num_pictures(span):
            raise EvaluationError(
                f"wanted {self._num_pictures(span)} pictures (got {len(drawn.images)})"
            )
        write_tensors(self._path(span), {"images": drawn.images}, asdict(drawn.cost))

    def read(self, span: Span) -> np.ndarray:
        """Open the pictures of a file; they are read when they are used.

        Args:
            span: one of `spans`, and not missing.

        Returns:
            uint8 [N * frames, H, W, 3].

        Raises:
            StoreError: the file is damaged.
        """
        return read_full(self._path(span))

    def cost(self, span: Span) -> Cost:
        """What the pictures of a file took.

        Args:
            span: one of `spans`, and not missing.
        """
        return decode(read_header(self._path(span)).metadata["qsdm"].encode(), Cost)

    def firsts(self, numbers: Sequence[int]) -> np.ndarray:
        """The pictures of some drawings; of a video, its first frame.

        Args:
            numbers: of the drawings.

        Returns:
            uint8 [N, H, W, 3].
        """
        images = []
        for number in numbers:
            start = number // self.size * self.size
            span = start, min(start + self.size, self.protocol.num_images)
            images.append(np.array(self.read(span)[(number - start) * self.protocol.frames]))
        return np.stack(images)

    def _num_pictures(self, span: Span) -> int:
        return (span[1] - span[0]) * self.protocol.frames

    def _path(self, span: Span) -> Path:
        return self.folder / f"{span[0]}-{span[1]}.safetensors"

    def _is_whole(self, span: Span) -> bool:
        if not self._path(span).exists():
            return False
        try:
            images, edge = self.read(span), self.protocol.resolution_px
            self.cost(span)
        except (StoreError, OSError, ValueError, KeyError) as error:
            warn_once(f"{error}: these pictures are drawn again")
            return False
        return images.shape == (self._num_pictures(span), edge, edge, 3)


def draw(pictures: Pictures, start: PicturesStart, engine: Engine) -> Iterator[Span]:
    """Draw the pictures that are missing, and write each file as its pictures arrive.

    Args:
        pictures: whose files are written.
        start: of the workers.
        engine: where they run.

    Yields:
        The span of each file that was written.

    Raises:
        EngineError: the pipeline cannot be loaded.
        EvaluationError: a picture cannot be drawn.
        StoreError: a file cannot be written.
    """
    missing = pictures.missing()
    if not missing:
        return
    with engine.open(start) as pool:
        for i, result in pool.map(missing):
            if isinstance(result, Failure):
                raise EvaluationError(f"{start.contender.name} draws no pictures: {result.reason}")
            pictures.add(missing[i], result)
            yield missing[i]
