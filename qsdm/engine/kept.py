"""Workers that outlast one command: what they have loaded serves the next one.

Loading takes longer than drawing a few pictures, for a large pipeline by minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from qsdm.engine import Engine, Pool, Start
from qsdm.engine.pipe import encode


@contextmanager
def kept(engine: Engine) -> Iterator[Kept]:
    """Keep an engine's workers until the block ends, for whatever reason.

    Args:
        engine: whose workers are kept.

    Yields:
        An engine that opens the same workers again if they are told to start in the same way;
        otherwise the former ones end first.
    """
    with ExitStack() as stack:
        yield Kept(engine, stack)


@dataclass(slots=True)
class Kept:
    """See `kept`."""

    engine: Engine
    _stack: ExitStack
    _start: bytes = b""
    _pool: Pool | None = None

    @property
    def num_workers(self) -> int | None:
        """Those of the engine."""
        return self.engine.num_workers

    @contextmanager
    def open(self, start: Start) -> Iterator[Pool]:
        """Start workers, or take those that run (see `qsdm.engine.Engine.open`)."""
        told = encode(start)
        if self._pool is None or told != self._start:
            self._end()
            self._pool, self._start = self._stack.enter_context(self.engine.open(start)), told
        try:
            yield self._pool
        except BaseException:  # the workers may be in the middle of something
            self._end()
            raise

    def _end(self) -> None:
        self._pool = None
        self._stack.close()
