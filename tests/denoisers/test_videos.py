"""What the source of a pipeline's class says is what its signature says."""

from __future__ import annotations

import inspect

import diffusers
import pytest

from qsdm.denoisers.videos import LENGTHS, surely_draws_pictures


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("StableDiffusionPipeline", True),
        ("StableDiffusion3Pipeline", True),
        ("PixArtSigmaPipeline", True),
        ("DiTPipeline", True),
        ("WanPipeline", False),
        ("CogVideoXPipeline", False),
        ("TextToVideoZeroPipeline", False),
    ],
)
def test_a_length_in_the_source_is_one_in_the_signature(name: str, pictures: bool) -> None:
    assert surely_draws_pictures(name) == pictures
    parameters = inspect.signature(getattr(diffusers, name).__call__).parameters
    assert pictures == (not parameters.keys() & set(LENGTHS))


def test_a_class_that_is_not_there_is_not_judged() -> None:
    assert not surely_draws_pictures("NoPipeline")
