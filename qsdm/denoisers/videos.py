"""Whether a pipeline's class draws videos, from its source: importing it takes seconds."""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

LENGTHS = ("num_frames", "video_length")
"""Names of the argument that is the length of a video, in calls of diffusers' pipelines."""


@lru_cache(maxsize=64)
def surely_draws_pictures(name: str) -> bool:
    """Whether the source of a class shows that its call takes no length of a video.

    Args:
        name: of a class in diffusers.

    Returns:
        False also where the source does not tell, as for a class that inherits its call.
    """
    spec = find_spec("diffusers")
    if spec is None or spec.origin is None:
        return False
    for path in Path(spec.origin).parent.glob("pipelines/**/pipeline_*.py"):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            continue
        _, heading, body = text.partition(f"\nclass {name}(")
        if heading:
            body = body.partition("\nclass ")[0]
            return "\n    def __call__(" in body and not any(word in body for word in LENGTHS)
    return False
