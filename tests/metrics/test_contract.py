"""Every metric that ``conf/metrics`` names keeps the contract, without being listed here."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from qsdm.metrics import Metric, description, reduce_subsets

ROOT = Path(__file__).parents[2]
ENTRIES = [
    pytest.param(name, entry, id=f"{path.stem}-{name}")
    for path in sorted((ROOT / "conf" / "metrics").glob("*.yaml"))
    for name, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items()
    if isinstance(entry, dict)
]
SHIPPED = [param for param in ENTRIES if str(param.id).startswith("emoji-")]


def metric_of(entry: dict[str, Any]) -> Metric:
    module, _, name = entry["_target_"].rpartition(".")
    options = {key: value for key, value in entry.items() if key != "_target_"}
    return getattr(importlib.import_module(module), name)(**options)


@pytest.mark.parametrize(("name", "entry"), ENTRIES)
def test_a_metric_describes_itself(name: str, entry: dict[str, Any]) -> None:
    metric = metric_of(entry)
    assert metric.name == name, "outcomes and objectives use the entry's key"
    types = {key: type(value) for key, value in description(metric).items()}
    assert types == {"label": str, "larger_is_better": bool, "digits": int}
    assert metric.label
    assert metric.digits >= 0
    assert hash(metric) == hash(metric_of(entry)), "a metric is a value"


@pytest.mark.parametrize(("name", "entry"), SHIPPED)
def test_a_metric_scores_any_subset_of_the_pictures(
    name: str, entry: dict[str, Any], emoji: np.ndarray
) -> None:
    """Features are of single pictures: those of a few are those of all, in part."""
    metric = metric_of(entry)
    assert metric.version == metric_of(entry).version
    assert isinstance(metric.version, str)
    images, full = emoji[:24], emoji[24:48]
    captions = [f"picture {i}" for i in range(24)]
    features = metric.features(images, captions, full)
    assert features.ndim == 2
    assert len(features) == 24
    assert features.dtype == np.float32
    few = metric.features(images[:10], captions[:10], full[:10])
    np.testing.assert_allclose(few, features[:10], rtol=1e-3, atol=1e-3)
    value = metric.reduce(features)
    assert value is not None, name
    assert np.isfinite(value)
    assert metric.reduce(features[:10]) == pytest.approx(metric.reduce(few), rel=1e-2, abs=1e-3)
    alone = metric.features(images, captions, None)
    assert len(alone) == 24, "full precision itself has features too, perhaps empty ones"
    of_full = metric.reduce(alone)
    assert of_full is None or np.isfinite(of_full)


@pytest.mark.parametrize(("name", "entry"), SHIPPED)
def test_subsets_together_have_the_values_that_they_have_alone(
    name: str, entry: dict[str, Any], emoji: np.ndarray, rng: np.random.Generator
) -> None:
    metric = metric_of(entry)
    images, captions = emoji[:24], [f"picture {i}" for i in range(24)]
    features = metric.features(images, captions, emoji[24:48])
    subsets = [np.arange(24), np.arange(4), *(np.sort(rng.permutation(24)[:12]) for _ in range(5))]
    together = reduce_subsets(metric, features, subsets)
    alone = [metric.reduce(features[rows]) for rows in subsets]
    assert [value is None for value in together] == [value is None for value in alone], name
    for a, b in zip(together, alone, strict=True):
        assert a is None or a == pytest.approx(b, rel=1e-9, abs=1e-9)
    of_full = metric.features(images, captions, None)
    assert len(reduce_subsets(metric, of_full, subsets)) == len(subsets)
