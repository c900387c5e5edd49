"""What ships with qsdm fits together: the pipeline, its judge, and the labels that were measured
with them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composed import compose

from qsdm.denoisers import load_pipeline, prompts_of, weights_digest
from qsdm.graph import Graph
from qsdm.measurement.labels import Bank
from qsdm.measurement.protocol import protocol_of
from qsdm.outcome import SCHEMA, Objective
from qsdm.run.values import values_of
from qsdm.store import ZOO, Store
from qsdm.store.files import read_json
from qsdm.store.manifest import NAME, check_shipped, read_checksums
from qsdm.trace import trace
from qsdm.workspace import Workspace

ALL = sorted(path.parent.name for path in ZOO.glob("*/pipeline"))
LABELS = 240  # at least
METRICS = {
    "fd_lite0",
    "kd_lite0",
    "cmmd",
    "precision",
    "recall",
    "clip_score",
    "psnr",
    "ssim",
    "lite0_distance",
}
TESTED = {
    (0, 256): 60,
    (1, 256): 60,
    (0, 1024): 60,
}  # configurations of the test set, by seed set and pictures
WIDE = 100  # configurations of the wide space


@pytest.fixture(scope="module", params=ALL)
def settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    function, cfg = compose("calibrate", [f"model={request.param}"])
    return values_of(function, cfg)


def test_three_architectures_ship() -> None:
    assert ALL == ["emoji_mmdit", "emoji_pixart", "emoji_unet"]


def test_labels_were_measured_with_this_pipeline_and_these_metrics(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Else a user's demo would measure all of them again."""
    model, space = settings["model"], settings["space"]
    protocol = protocol_of(model, prompts_of(model), seed_set=0, num_images=256)
    outcomes = Store(tmp_path, model.name).outcomes(protocol)
    trace(Workspace(model, root=tmp_path), page=False)
    graph = Graph.from_json(read_json(Store(tmp_path, model.name).path("graph.json")))
    encodable = space.of(graph, model.full_bits)
    bank = Bank.read(Store(tmp_path, model.name), encodable, model)
    labels = bank.labels(Objective({"fd_lite0": -1}))
    assert labels.is_current(model)
    assert len(labels) >= LABELS
    tests = bank.tests(Objective({"fd_lite0": -1}))
    (test,) = [test for test in tests if test.protocol == labels.protocol]
    assert len(test) >= TESTED[0, 256]
    drawn = np.concatenate([labels.genes, test.genes])
    assert len(np.unique(drawn, axis=0)) == len(drawn)
    assert all(
        outcome.num_images == 256 and set(outcome.metrics) == METRICS for outcome in outcomes
    )
    assert set(model.metrics) >= METRICS, "a model may have further metrics, which no label lacks"
    alone = [outcome.qconfig.methods for outcome in outcomes if len(outcome.qconfig.methods) == 1]
    assert all(method.bits == 3 for methods in alone for method in methods.values())
    assert {name for methods in alone for name in methods} == {
        weight.name for weight in encodable.graph.weights
    }


@pytest.mark.parametrize("name", ALL)
def test_the_bank_is_a_table_that_others_read(name: str) -> None:
    import pandas
    import pyarrow.parquet

    path = ZOO / name / "store" / "outcomes.parquet"
    assert pyarrow.parquet.read_schema(path).metadata[b"qsdm_schema"] == str(SCHEMA).encode()
    bank = pandas.read_parquet(path)
    card = (path.parent / "README.md").read_text(encoding="utf-8")
    for column in bank.columns:
        group = column.partition("/")[0]
        assert f"`{group}/NAME`" in card or f"`{column}`" in card, (
            f"the data card does not explain {column}"
        )
    labels = bank[(bank.part == "traced") & (bank.stage == "measure")]
    # The lowest tenth of emoji_mmdit's range holds 10 of 240: few configurations are that small.
    counts, _ = np.histogram(labels.avg_bits, 5 if name == "emoji_mmdit" else 10)
    assert counts.min() > 0.5 * counts.mean(), "average bits are not spread evenly"
    error = labels["standard_error/fd_lite0"]
    assert (error > 0).all()
    assert error.median() < 0.5 * labels["metric/fd_lite0"].std(), "labels that are all noise"
    tested = bank[(bank.stage == "test") & (bank.part == "traced")]
    sets = {key: set(rows.qconfig) for key, rows in tested.groupby(["seed_set", "num_images"])}
    assert {key: len(found) for key, found in sets.items()} == TESTED
    assert all(found <= sets[0, 256] for found in sets.values()), (
        "seed sets and pictures of other configurations"
    )
    assert not sets[0, 256] & set(labels.qconfig), "a configuration of the test set is a label, too"
    assert sum(bank.part == "wide") == WIDE
    assert bank.pictures.nunique() == len(bank), "two configurations drew the same pictures"


def test_pipeline_is_small_and_in_16_bit(settings: dict[str, Any]) -> None:
    from safetensors import safe_open

    files = [path for path in settings["model"].directory.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16e6
    for path in files:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as weights:
                assert {weights.get_slice(name).get_dtype() for name in list(weights.keys())} <= {
                    "F16",
                    "I64",
                }
        assert path.suffix in (".safetensors", ".json")  # no pickle
    (denoiser,) = (settings["model"].directory / settings["model"].component).glob("*.safetensors")
    assert denoiser.stat().st_size <= 8e6


def test_text_encoder_pools_the_last_token(settings: dict[str, Any]) -> None:
    import torch

    pipeline = load_pipeline(settings["model"])
    tokens = pipeline.tokenizer("grinning face, twemoji", return_tensors="pt")
    with torch.inference_mode():
        out = pipeline.text_encoder(tokens.input_ids)
    assert tokens.input_ids[0, -1] == pipeline.tokenizer.eos_token_id
    pooled = (
        out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
    )  # a projection by identity
    torch.testing.assert_close(pooled, out.last_hidden_state[:, -1])


def test_quality_was_measured_with_these_weights(settings: dict[str, Any]) -> None:
    """The shipped figures are those of the shipped weights, and meet the bar that a pipeline is
    accepted by.
    """
    quality = json.loads((ZOO / settings["model"].name / "quality.json").read_text())
    assert quality["weights"] == weights_digest(settings["model"])
    distance = quality["fd_lite0"]
    assert distance["floor"] < distance["autoencoder"] < distance["generated"]
    assert distance["generated"] < 3 * distance["autoencoder"]


def test_all_that_ships_is_listed_with_its_checksum() -> None:
    """Once any of it is made anew: python experiments/zoo/checksums.py."""
    files = {path.relative_to(ZOO).as_posix() for path in ZOO.rglob("*") if path.is_file()}
    listed = read_checksums(ZOO)
    assert {name for name in files if not name.endswith((".md", ".png"))} == {*listed, NAME}
    check_shipped(ZOO)
