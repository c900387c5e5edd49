"""Reference features: from a folder to a file named by data set, resolution and number."""

from __future__ import annotations

import collections
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qsdm.metrics import MetricError, lite0, networks
from qsdm.metrics.reference import Reference, main, read_pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(7):
        picture = Image.fromarray(rng.integers(0, 256, (40, 48 + i, 3), dtype=np.uint8))
        (tmp_path / "pictures" / str(i % 2)).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "pictures" / str(i % 2) / f"{i}.png")
    return tmp_path / "pictures"


def test_a_folder_becomes_a_named_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = f"--name toy --resolution 32 --networks lite0 --store {tmp_path}"
    main([str(folder), *options.split()])
    path = tmp_path / "references" / "toy-32px-7.safetensors"
    assert str(path) in capsys.readouterr().out
    stored = Reference(str(path)).features("lite0", 112)
    expected = lite0.features(np.stack(list(read_pictures(folder, 32, None))))
    np.testing.assert_allclose(stored, expected, rtol=2e-3, atol=1e-3)  # stored in 16 bits
    with pytest.raises(MetricError, match="wanted reference features of clip, 8 numbers each"):
        Reference(str(path)).features("clip", 8)


def test_the_middle_square_is_taken(tmp_path: Path) -> None:
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    (picture,) = read_pictures(tmp_path, 10, None)
    assert (picture == 255).all()


def test_bad_folders_and_files_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"wanted 9 pictures in .* \(got 7"):
        main([str(folder), *f"--name toy --resolution 32 --num 9 --store {tmp_path}".split()])
    (folder / "0" / "0.png").write_bytes(b"no picture")
    with pytest.raises(MetricError, match=r"0.png cannot be read as a picture"):
        list(read_pictures(folder, 32, None))
    (tmp_path / "x.safetensors").write_bytes(b"broken")
    with pytest.raises(MetricError, match="damaged or not a file of reference features"):
        Reference(str(tmp_path / "x.safetensors")).features("lite0", 112)


def test_the_same_pictures_are_seen_once() -> None:
    calls = []

    def compute(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return images.mean((1, 2))

    images = np.random.default_rng(3).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    first = networks.once("test", images, compute)
    assert networks.once("test", images.copy(), compute) is first
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    assert networks.once("test", changed, compute) is not first
    assert calls == [4, 4]


def test_features_of_full_precision_outlast_those_of_many_others() -> None:
    """Each set of pictures that is compared asks for them again, file by file."""
    computed = []

    def compute(images: np.ndarray) -> np.ndarray:
        computed.append(int(images[0, 0, 0, 0]))
        return np.zeros((len(images), 112), np.float32)

    files = [np.full((2, 8, 8, 3), number, np.uint8) for number in range(60)]
    for other in files[20:]:
        for full in files[:20]:
            networks.once("outlasts", full, compute)
        networks.once("outlasts", other, compute)
    assert sorted(computed) == list(range(60)), "nothing is computed twice"


def test_no_more_features_are_kept_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_cache", collections.OrderedDict())
    monkeypatch.setattr(networks, "_MAX_CACHED_BYTES", 2 * 112 * 4)
    for number in range(5):
        images = np.full((1, 8, 8, 3), number, np.uint8)
        networks.once("memory", images, lambda images: np.zeros((len(images), 112), np.float32))
    assert len(networks._cache) == 2
    images = np.zeros((9, 8, 8, 3), np.uint8)
    large = networks.once("memory", images, lambda images: np.zeros((len(images), 112), np.float32))
    (kept,) = networks._cache.values()
    assert kept is large, "the last one is kept, whatever its size"
