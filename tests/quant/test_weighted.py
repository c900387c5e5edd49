"""Fits that weight errors by the layer's inputs, and where the weights come from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

from qsdm.measurement.moments import SecondMoment
from qsdm.qconfig import QuantMethod
from qsdm.quant.decoding import dequantize
from qsdm.quant.fitting import fit, fit_all
from qsdm.quant.uaq import affine

PAIRS = [
    (QuantMethod(name, bits), QuantMethod(f"{name}_w", bits))
    for name in ("uaq", "kmeans_c", "kmeans_a")
    for bits in (2, 3, 4)
]


def weight_and_importance(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, np.ndarray]:
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.standard_t(4, (12, 40, 3, 3)) * 0.02).to(dtype)
    return weight, np.exp(rng.normal(0, 2, 40)).astype(np.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weighted_fits_have_the_least_weighted_error(dtype: torch.dtype) -> None:
    weight, importance = weight_and_importance(dtype)
    methods = [method for pair in PAIRS for method in pair]
    fitted = fit_all(weight, methods, importance)
    for plain, weighted in PAIRS:
        assert fitted[weighted].weighted_error < 0.99 * fitted[plain].weighted_error
        if plain.name != "uaq":  # which has another exponent
            assert fitted[weighted].rel_error > fitted[plain].rel_error
    off = (weight.float() - dequantize(fitted[methods[0]].quantized)).square().sum((0, 2, 3))
    norm = weight.float().square().sum((0, 2, 3))
    expected = (off.numpy() @ importance) / (norm.numpy() @ importance)
    assert fitted[methods[0]].weighted_error == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("num_inputs", [30, 3000])  # solved exactly, and over runs of values
def test_weighted_codebooks_are_as_good_as_those_of_scikit_learn(num_inputs: int) -> None:
    rng = np.random.default_rng(1)
    weight = torch.from_numpy(rng.standard_t(3, (2, num_inputs))).float()
    importance = np.exp(rng.normal(0, 1, num_inputs)).astype(np.float32)

    def error(values: np.ndarray, row: np.ndarray) -> float:
        return float((importance * (values - row) ** 2).sum())

    ours = dequantize(fit(weight, QuantMethod("kmeans_c_w", 3), importance)).numpy()
    for row, values in zip(weight.numpy(), ours, strict=True):
        peer = KMeans(8, n_init=3, random_state=0).fit(row[:, None], sample_weight=importance)
        assert error(values, row) < 1.002 * error(peer.cluster_centers_[peer.labels_, 0], row)


def test_a_weighted_range_is_the_best_of_ten() -> None:
    weight, importance = weight_and_importance()
    row, spread = weight[0].numpy().ravel(), np.repeat(importance, 9)
    errors = []
    for k in range(10):
        factor = np.float32(1) - np.float32(0.1) * np.float32(k)
        scale, zero = affine(row.min() * factor, row.max() * factor, np.float32(7))
        values = (np.clip(np.rint(row / scale) + zero, 0, 7) - zero) * scale
        errors.append(float((spread * (values - row) ** 2).sum()))
    own = dequantize(fit(weight[:1], QuantMethod("uaq_w", 3), importance)).numpy().ravel()
    error = float((spread * (own - row) ** 2).sum())
    assert error == pytest.approx(min(errors), rel=1e-4)
    assert min(errors) < errors[0]


def test_inputs_that_are_alike_change_nothing() -> None:
    weight, _ = weight_and_importance()
    for _, method in PAIRS:
        alike = fit(weight, method, np.full(40, 3.0, np.float32))
        for silent in (fit(weight, method), fit(weight, method, np.zeros(40, np.float32))):
            assert torch.equal(alike.codes, silent.codes)


@pytest.mark.parametrize("importance", [np.ones(39), np.full(40, np.nan), np.full(40, -1.0)])
def test_an_importance_that_does_not_fit_is_one_sentence(importance: np.ndarray) -> None:
    with pytest.raises(ValueError, match="importance of"):
        fit(weight_and_importance()[0], PAIRS[0][1], importance)


def test_moments_are_mean_squares_of_channels() -> None:
    layers = nn.Linear(5, 2), nn.Conv2d(6, 4, 3, groups=2), nn.MultiheadAttention(5, 1)
    inputs = torch.randn(3, 7, 5), torch.randn(2, 6, 8, 8), torch.randn(3, 7, 4)
    expected = (
        inputs[0].square().mean((0, 1)),
        inputs[1].square().mean((0, 2, 3)).view(2, 3).mean(0),
    )
    for layer, x, means in zip(layers, inputs, (*expected, None), strict=False):
        num_channels = layer.weight.shape[1] if means is not None else 5  # type: ignore[union-attr]
        moment = SecondMoment(num_channels)
        moment(layer, (x[:1],))
        moment(layer, (x[1:],))
        if means is None:
            assert moment.count == 0
        else:
            torch.testing.assert_close((moment.total / moment.count).float(), means)
    SecondMoment(3)(layers[0], ())
