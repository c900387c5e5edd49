"""What ImageReward and HPSv2 are asked, and the error where they are not installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qsdm.metrics import MetricError, preference
from qsdm.metrics.preference import NETWORKS, Preference


@pytest.mark.parametrize("name", NETWORKS)
def test_every_picture_is_scored_with_its_own_caption(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, float]] = []

    class Network:
        def score(self, pixels: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            assert pixels.shape[1:] == (3, 8, 6)
            assert 0 <= pixels.min() < 0.1 < 0.9 < pixels.max() <= 1
            asked.extend(zip(prompts, pixels.mean(dim=(1, 2, 3)).tolist(), strict=True))
            return torch.tensor([float(len(prompt)) for prompt in prompts])

    monkeypatch.setattr(preference, "_network", lambda *_: Network())
    images = np.random.default_rng(0).integers(
        0, 256, (preference.BATCH + 3, 8, 6, 3), dtype=np.uint8
    )
    captions = ["x" * i for i in range(len(images))]
    scores = Preference(name).features(images, captions, None)
    assert scores.shape == (len(images), 1)
    assert scores.dtype == np.float32
    assert scores.ravel().tolist() == list(range(len(images)))
    assert [prompt for prompt, _ in asked] == captions
    np.testing.assert_allclose(
        [mean for _, mean in asked], images.mean(axis=(1, 2, 3)) / 255, rtol=1e-5
    )
    assert Preference(name).reduce(scores) == (len(images) - 1) / 2


@pytest.mark.parametrize("name", NETWORKS)
def test_a_missing_package_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imscore", None)
    with pytest.raises(
        MetricError, match=rf"^{name} needs the package imscore .*pip install 'qsdm\[preference\]'"
    ):
        Preference(name).features(np.zeros((2, 8, 8, 3), np.uint8), ["x"] * 2, None)


def test_another_network_in_its_folder_is_another_version(tmp_path: Path) -> None:
    """Also if its files are older than others there, as a copy that keeps their times."""
    assert Preference("hps").version == "imscore RE-N-Y/hpsv21"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"0")
    versions = {Preference("hps", str(tmp_path)).version}
    for content in (b"1", b"2"):
        copied = tmp_path.with_name("copy")
        copied.write_bytes(content)
        os.utime(copied, (0, 0))
        copied.replace(tmp_path / "model.safetensors")
        versions.add(Preference("hps", str(tmp_path)).version)
    assert len(versions) == 3


def test_there_are_two() -> None:
    with pytest.raises(ValueError, match="wanted one of image_reward, hps"):
        Preference("hpsv3")
