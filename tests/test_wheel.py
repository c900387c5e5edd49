"""What a wheel holds, and what an installation without the emoji pipelines says."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsdm.denoisers import existing, prompts_of
from qsdm.metrics import file_digest
from qsdm.metrics.reference import Reference
from qsdm.run.conf import CHECKOUT, load
from qsdm.store import StoreError

MOST_BYTES = 15_000_000


def test_a_wheel_is_the_code_and_what_all_models_need() -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    files = {
        file.distribution_path: Path(file.path).stat().st_size
        for file in wheel.WheelBuilder(str(CHECKOUT)).recurse_included_files()
    }
    assert {path.name for path in CHECKOUT.glob("qsdm/*.py")} == {
        name.removeprefix("qsdm/") for name in files if name.count("/") == 1
    } - {"py.typed"}
    assert {"qsdm/metrics/lite0.safetensors", "qsdm/conf/model/emoji_unet.yaml"} <= files.keys()
    assert {f"qsdm/shelf/recipes/{name}" for name in ("index.json", "README.md")} <= files.keys()
    assert not [name for name in files if name.startswith("qsdm/zoo/")]
    assert sum(files.values()) < MOST_BYTES


def test_without_the_zoo_one_sentence_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("store", "denoisers.model", "metrics.reference"):
        monkeypatch.setattr(f"qsdm.{module}.ZOO", tmp_path / "zoo")
    model = load("model", "emoji_mmdit")
    sentence = r"is not in .*/zoo: .*; clone the repository and set QSDM_ZOO=CHECKOUT/qsdm/zoo,"
    with pytest.raises(StoreError, match="emoji_mmdit/pipeline " + sentence):
        existing(model)
    with pytest.raises(StoreError, match="emoji_mmdit/prompts.json " + sentence):
        prompts_of(model)
    with pytest.raises(StoreError, match="emoji_unet/reference_features.safetensors " + sentence):
        file_digest(Reference("zoo").path)
