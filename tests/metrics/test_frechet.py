"""Laws of the Fréchet distance, and that lite0 is the network it claims to be."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.nn import functional as F

from qsdm.metrics import MetricError, lite0, networks
from qsdm.metrics.frechet import FrechetInception, FrechetLite0, Gaussian, frechet, write_reference


def features(n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)).astype(
        np.float32
    )


@pytest.mark.parametrize("n", [8, 200], ids=["fewer pictures than features", "more"])
def test_is_zero_for_the_same_pictures_and_symmetric(n: int) -> None:
    a, b = features(n, 30, 0), features(n, 30, 1)
    scale = np.trace(np.cov(a.astype(np.float64), rowvar=False))
    assert frechet(Gaussian.of(a), Gaussian.of(a)) <= 1e-12 * scale
    shuffled = np.random.default_rng(2).permutation(a)
    assert frechet(Gaussian.of(a), Gaussian.of(shuffled)) <= 1e-12 * scale
    forth, back = frechet(Gaussian.of(a), Gaussian.of(b)), frechet(Gaussian.of(b), Gaussian.of(a))
    assert forth == pytest.approx(back, rel=1e-10)
    assert forth > 0.1 * scale


@pytest.mark.parametrize("n", [8, 200], ids=["fewer pictures than features", "more"])
def test_equals_the_textbook_formula(n: int) -> None:
    a, b = (features(n, 30, seed).astype(np.float64) for seed in (0, 1))
    c1, c2 = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    if (
        n < 30
    ):  # the matrix root of a singular product is numerically undefined; eigenvalues are not
        values = scipy.linalg.eigvals(c1 @ c2)
        root = np.sqrt(values.real.clip(0)).sum()
    else:
        root = np.trace(scipy.linalg.sqrtm(c1 @ c2).real)
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(c1) + np.trace(c2) - 2 * root
    assert frechet(Gaussian.of(a), Gaussian.of(b)) == pytest.approx(expected, rel=1e-4)
    stored = Gaussian.of_moments(a.mean(0), c1)
    assert frechet(stored, Gaussian.of(b)) == pytest.approx(expected, rel=1e-4)


def test_of_shifted_and_scaled_features() -> None:
    a = features(100, 5, 0).astype(np.float64)
    trace = np.trace(np.cov(a, rowvar=False))
    assert frechet(Gaussian.of(a), Gaussian.of(a + 3)) == pytest.approx(5 * 9)
    # |2s - s|^2 summed over the axes is the trace; the mean moves by itself.
    centered = a - a.mean(0)
    assert frechet(Gaussian.of(centered), Gaussian.of(2 * centered)) == pytest.approx(trace)


def test_noise_moves_pictures_away_from_themselves(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    blobs = F.interpolate(
        torch.from_numpy(rng.uniform(0, 255, (20, 3, 4, 4))), 32, mode="bicubic"
    ).clamp(0, 255)
    images = blobs.permute(0, 2, 3, 1).round().byte().numpy()
    write_reference(tmp_path / "reference.safetensors", lite0.features(images))
    metric = FrechetLite0(str(tmp_path / "reference.safetensors"))
    values = []
    for sigma in (0, 8, 32):
        noisy = (
            (images + rng.normal(scale=sigma, size=images.shape)).clip(0, 255).astype(np.uint8)
            if sigma
            else images
        )
        values.append(metric.reduce(metric.features(noisy, [], None)))
    assert values[0] < 1e-3 * values[1]
    assert values[1] < values[2]
    assert not metric.larger_is_better


def test_lite0_pads_like_tensorflow() -> None:
    """Stride 2, kernel 3, even size: nothing before the first pixel, one zero after the last."""
    conv = lite0.SameConv2d(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(conv.weight)
    row = torch.arange(1.0, 5.0).repeat(4, 1)[None, None]
    with torch.no_grad():
        assert conv(row)[0, 0, 0].tolist() == [3 * (1 + 2 + 3), 3 * (3 + 4)]
    wide = lite0.SameConv2d(1, 1, 5, 2, bias=False)  # one zero before, two after
    torch.nn.init.ones_(wide.weight)
    with torch.no_grad():
        assert wide(row)[0, 0, 0].tolist() == [4 * (1 + 2 + 3 + 4), 4 * (2 + 3 + 4)]


def test_lite0_sees_what_a_trained_network_sees() -> None:
    """Flipping a picture changes features much less than replacing it, unlike random weights."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    one = lite0.features(images)
    flipped = lite0.features(np.ascontiguousarray(images[:, :, ::-1]))
    other = np.roll(one, 1, axis=0)
    assert (
        np.linalg.norm(one - flipped, axis=1).max()
        < 0.8 * np.linalg.norm(one - other, axis=1).min()
    )


def test_features_do_not_depend_on_the_batch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    np.testing.assert_allclose(
        lite0.features(images, 5), lite0.features(images, 2), rtol=1e-4, atol=1e-4
    )


def test_version_follows_the_reference(tmp_path: Path) -> None:
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_reference(first, features(150, 112, 0))
    write_reference(second, features(150, 112, 1))
    assert FrechetLite0(str(first)).version != FrechetLite0(str(second)).version


def test_a_reference_of_other_features_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    write_reference(path, features(10, 5, 0))
    with pytest.raises(MetricError, match="wanted a reference of 112 features"):
        FrechetLite0(str(path)).reduce(features(4, 112, 0))
    path.write_bytes(b"cut")
    with pytest.raises(MetricError, match="damaged or not a reference"):
        FrechetLite0(str(path)).reduce(features(4, 112, 0))
    with pytest.raises(MetricError, match="does not exist: restore it"):
        _ = FrechetLite0(str(tmp_path / "missing.safetensors")).version


def test_fid_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(MetricError, match="need torch-fidelity"):
        FrechetInception(str(tmp_path / "r.safetensors")).features(
            np.zeros((2, 8, 8, 3), np.uint8), [], None
        )


def test_weights_are_the_published_file_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch-fidelity, which is not installed here, unpickles what it is given."""
    content = b"published"
    name = f"weights-inception-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    published = tmp_path / "site" / name
    published.parent.mkdir()
    published.write_bytes(content)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    path = networks.downloaded(published.as_uri())
    assert path.read_bytes() == content
    published.unlink()
    assert networks.downloaded(published.as_uri()) == path, "asked for twice"
    published.write_bytes(b"another")
    path.unlink()
    with pytest.raises(MetricError, match=r"is damaged or not the published file .*: delete it$"):
        networks.downloaded(published.as_uri())
    path.write_bytes(content + b"and more")
    with pytest.raises(MetricError, match=r"is damaged or not the published file .*: delete it$"):
        networks.downloaded(published.as_uri())
