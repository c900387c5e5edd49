from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_unet import Toy, method_table

from qsdm.predictor import FitOptions, Predictor
from qsdm.predictor.encode import Encoding
from qsdm.predictor.fit import fit_folds, split
from qsdm.predictor.scores import srcc
from qsdm.store import StoreError

QUICK = FitOptions(folds=2, width=16, hops=2, epochs=3)


@pytest.fixture(scope="module")
def data(toy: Toy) -> tuple[np.ndarray, np.ndarray]:
    outcomes, _ = toy.outcomes(40)
    genes = np.stack([toy.space.encode(outcome.qconfig) for outcome in outcomes])
    return genes, -np.array([outcome.metrics["fd_lite0"] for outcome in outcomes], dtype=np.float64)


@pytest.fixture(scope="module")
def predictor(encoding: Encoding, data: tuple[np.ndarray, np.ndarray]) -> Predictor:
    return Predictor(encoding, fit_folds(encoding, *data, QUICK), {"fd_lite0": -1.0})


@pytest.mark.parametrize(("num", "folds"), [(10, 5), (41, 5), (40, 2)])
def test_folds_cover_everything_once(num: int, folds: int) -> None:
    parts = split(num, folds, np.random.default_rng(0))
    assert sorted(np.concatenate(parts)) == list(range(num))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_too_few_outcomes_are_refused() -> None:
    with pytest.raises(ValueError, match="measure more configurations"):
        split(9, 5, np.random.default_rng(0))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_networks(
    threads: int, encoding: Encoding, data: tuple[np.ndarray, np.ndarray], predictor: Predictor
) -> None:
    """One after the other, or side by side."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        again = Predictor(encoding, fit_folds(encoding, *data, QUICK), {})
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(again.predict(data[0])[0], predictor.predict(data[0])[0])
    other = Predictor(encoding, fit_folds(encoding, *data, QUICK, seed=1), {})
    assert not np.array_equal(other.predict(data[0])[0], predictor.predict(data[0])[0])


def test_an_error_ends_all_folds(encoding: Encoding, data: tuple[np.ndarray, np.ndarray]) -> None:
    logged = []

    def log(figures: dict) -> None:
        logged.append(figures["train/fold"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_folds(encoding, *data, dataclasses.replace(QUICK, epochs=1000), log=log)
    assert logged == [0]


def test_a_fold_does_not_know_the_labels_of_its_test_part(
    encoding: Encoding, data: tuple[np.ndarray, np.ndarray], predictor: Predictor
) -> None:
    """Neither its network nor the weights of its hops nor its scale."""
    genes, labels = data
    first = predictor.folds[0]
    spoilt = labels.copy()
    spoilt[first.test] = 1e6 * np.random.default_rng(0).normal(size=len(first.test))
    again = fit_folds(encoding, genes, spoilt, QUICK)[0]
    assert (again.mean, again.deviation, again.epochs) == (
        first.mean,
        first.deviation,
        first.epochs,
    )
    np.testing.assert_array_equal(again.hop_quality, first.hop_quality)
    for name, tensor in again.gnn.state_dict().items():
        np.testing.assert_array_equal(tensor, first.gnn.state_dict()[name])


def test_what_is_saved_is_what_is_loaded(toy: Toy, predictor: Predictor, tmp_path: Path) -> None:
    predictor.save(tmp_path)
    (tmp_path / "fold-9.safetensors").write_bytes((tmp_path / "fold-0.safetensors").read_bytes())
    predictor.save(tmp_path)
    loaded = Predictor.load(tmp_path, toy.space, toy.table)
    assert len(loaded.folds) == 2
    genes = np.stack([toy.space.encode(toy.space.uniform(m)) for m in toy.space.methods])
    np.testing.assert_array_equal(loaded.predict(genes), predictor.predict(genes))
    assert loaded.objective == {"fd_lite0": -1.0}
    with pytest.raises(StoreError, match="objective"):
        loaded.require({"clip_score": 1.0})


def test_a_predictor_of_another_table_is_refused(
    toy: Toy, predictor: Predictor, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match=r"qsdm\.train"):
        Predictor.load(tmp_path / "nothing", toy.space, toy.table)
    predictor.save(tmp_path)
    with pytest.raises(StoreError, match="trained for another"):
        Predictor.load(tmp_path, toy.space, method_table(toy.space, seed=5))
    (tmp_path / "fold-1.safetensors").write_bytes(b"half a fi")
    with pytest.raises(StoreError, match="damaged"):
        Predictor.load(tmp_path, toy.space, toy.table)


def test_prediction_is_the_mean_of_the_folds_in_the_objectives_units(
    predictor: Predictor, data: tuple[np.ndarray, np.ndarray]
) -> None:
    import torch

    genes, labels = data
    mean, std = predictor.predict(genes)
    with torch.no_grad():
        folds = (
            predictor.by_fold(torch.from_numpy(predictor.encoding.one_hot(genes))).double().numpy()
        )
    np.testing.assert_allclose(mean, folds.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(std, folds.std(axis=0), rtol=1e-2, atol=1e-3 * labels.std())
    assert abs(mean.mean() - labels.mean()) < labels.std()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("folds", 1),
        ("ranking", "ndcg"),
        ("validation", 1.0),
        ("lr", 0.0),
        ("batch_size", 2),
        ("ranking_weight", -1.0),
    ],
)
def test_options_out_of_range_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(FitOptions(), **{field: value})


@pytest.mark.slow
def test_the_network_learns_without_the_additive_model(
    encoding: Encoding, toy: Toy, data: tuple[np.ndarray, np.ndarray]
) -> None:
    options = FitOptions(folds=2, width=32, hops=2, epochs=60, patience=60, additive=False)
    folds = fit_folds(encoding, *data, options)
    new = [toy.space.sample(np.random.default_rng(99 + i)) for i in range(60)]
    mean, _ = Predictor(encoding, folds, {}).predict(
        np.stack([toy.space.encode(qconfig) for qconfig in new])
    )
    assert srcc(mean, -toy.true_fd(new)) > 0.7
    assert max(fold.hop_quality.max() for fold in folds) > 0.5
