"""Checkpoints whose weights change with the sampler's steps."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qsdm.checkpoint import (
    CheckpointError,
    Contents,
    contents,
    dequantized,
    follow_steps,
    load_quantized,
    save_denoiser,
    save_quantized,
)
from qsdm.checkpoint.card import parts
from qsdm.denoisers import Model, load_pipeline
from qsdm.graph import Graph
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.memory import memory_of
from qsdm.measurement.stepped import stepped
from qsdm.outcome import EvaluationError
from qsdm.qconfig import QuantConfig, QuantMethod, SpaceSpec, cost
from qsdm.qconfig.steps import StepBin
from qsdm.quant.decoding import dequantize
from qsdm.quant.fitting import fit
from qsdm.quant.packed import PackedLayer
from qsdm.quant.quantized import Quantized
from qsdm.quant.swap import Switch, sliced
from qsdm.store.header import read_header
from qsdm.trace import trace
from qsdm.workspace import Workspace

DRAWINGS = [Drawing(i, caption, i) for i, caption in enumerate(("a red house", "rain"))]


class Fits:
    """Weights of a pipeline, quantized when they are asked for."""

    def __init__(self, model: Model, graph: Graph) -> None:
        unet = load_pipeline(model).unet
        self.values = {
            w.name: sliced(unet.get_parameter(w.parameter), w).clone() for w in graph.weights
        }
        self.fitted: dict[tuple[str, QuantMethod], Quantized] = {}

    def quantized(self, weight: str, method: QuantMethod) -> Quantized:
        if (weight, method) not in self.fitted:
            self.fitted[weight, method] = fit(self.values[weight], method)
        return self.fitted[weight, method]

    def dequantize(
        self, weight: str, method: QuantMethod, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        return dequantize(self.quantized(weight, method), out)


@dataclasses.dataclass(frozen=True)
class Saved:
    """A tiny pipeline with three parts of its steps, as a checkpoint in 32 bits."""

    model: Model
    graph: Graph
    fits: Fits
    qconfig: QuantConfig
    path: Path
    contents: Contents

    def measured(self, qconfig: QuantConfig, steps: int) -> np.ndarray:
        drawer = Drawer(dataclasses.replace(self.model, steps=steps), self.graph, self.fits, 2)
        for weight in drawer.denoiser.parameters():  # as decoded ones are; else sums differ in the
            weight.data = weight.data.contiguous()  # last bit, and rounded inputs by a step
        return drawer.draw(qconfig, DRAWINGS)

    def loaded(self, steps: int, pipeline: Any) -> np.ndarray:
        model = dataclasses.replace(self.model, steps=steps)
        return Drawer(model, self.graph, None, 2, pipeline).draw(
            QuantConfig(self.graph.denoiser, {}), DRAWINGS
        )


@pytest.fixture(scope="module")
def saved(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    folder = tmp_path_factory.mktemp("bins")
    graph = trace(Workspace(tiny_model, root=folder), page=False)
    # One skip connection stays split by its inputs, whose parts have methods of their own.
    space = SpaceSpec("mixed", ["uaq-3", "uaq-4", "kmeans_a-3"], splits=r"up_blocks\.1").of(graph)
    rng, name = np.random.default_rng(0), graph.denoiser
    elsewhere = space.sample(rng).methods
    late = dict(list(elsewhere.items())[::2])  # the other half is in full precision there
    late |= dict.fromkeys(list(late)[::3], QuantMethod("uaq", 4))
    rounded = QuantConfig(name, late, 3, {next(iter(late)): 16})
    bins = (StepBin(0.75, 1, rounded), StepBin(0, 0.25, QuantConfig(name, {})))
    qconfig = QuantConfig(name, elsewhere, steps=bins)
    fits = Fits(tiny_model, space.graph)
    actual = save_quantized(
        load_pipeline(tiny_model),
        "unet",
        space.graph,
        qconfig,
        folder / "saved",
        fits.quantized,
        32,
    )
    return Saved(tiny_model, space.graph, fits, qconfig, folder / "saved", actual)


@pytest.fixture(scope="module")
def pipeline(saved: Saved) -> Any:
    """The checkpoint, loaded; tests leave it as it is."""
    return load_quantized(saved.path)


def test_a_loaded_checkpoint_draws_what_was_measured(
    saved: Saved, pipeline: Any, tmp_path: Path
) -> None:
    """And so it does at another number of steps, of which its bins are fractions."""
    pictures = {}
    for steps in (8, 4):
        pictures[steps] = saved.measured(saved.qconfig, steps)
        np.testing.assert_array_equal(saved.loaded(steps, pipeline), pictures[steps])
    assert (saved.measured(saved.qconfig.elsewhere, 4) != pictures[4]).any()
    pipeline.save_pretrained(tmp_path)
    np.testing.assert_array_equal(saved.loaded(4, load_quantized(tmp_path)), pictures[4])
    stored = read_header(tmp_path / "unet" / "diffusion_pytorch_model.safetensors").metadata["qsdm"]
    assert QuantConfig.from_json(json.loads(stored)["qconfig"]) == saved.qconfig
    # A copied pipeline has a scheduler and a step of its own.
    other = copy.deepcopy(pipeline)
    pipeline.scheduler.set_timesteps(50)
    np.testing.assert_array_equal(saved.loaded(4, other), pictures[4])


def guided(pipeline: Any, call: Callable[..., torch.Tensor], steps: int = 4) -> torch.Tensor:
    """A sampler's loop with two calls per step, as pipelines make that guide by two forwards."""
    pipeline.scheduler.set_timesteps(steps)
    latents = torch.ones(1, 4, 8, 8) * torch.linspace(-1, 1, 8)
    with torch.inference_mode():
        for t in pipeline.scheduler.timesteps:
            without, given = (
                call(latents, t, torch.full((1, 3, 16), s)).sample for s in (-1.0, 1.0)
            )
            noise = without + 2 * (given - without)
            latents = pipeline.scheduler.step(noise, t, latents).prev_sample
    return latents


def test_two_calls_in_one_step_have_the_same_weights(saved: Saved, pipeline: Any) -> None:
    plain = load_pipeline(saved.model)
    switch = Switch(plain.unet, saved.graph, saved.fits.dequantize)
    with stepped(plain, plain.unet, saved.qconfig, switch.to):
        expected = guided(plain, plain.unet)
    assert torch.equal(guided(pipeline, pipeline.unet), expected)


def test_each_method_of_a_weight_is_stored_once(
    saved: Saved, tiny_model: Model, pipeline: Any, tmp_path: Path
) -> None:
    unet = load_pipeline(tiny_model, dtype="float16").unet
    actual = save_denoiser(unet, saved.graph, saved.qconfig, tmp_path / "unet")
    packed = {w.parameter for w in saved.graph.weights if w.name in saved.qconfig.weights}
    plain = sum(2 * w.numel for w in saved.graph.weights if w.parameter not in packed)
    assert actual.packed_bytes + plain == cost.size_bytes(saved.graph, saved.qconfig)
    layers = [layer for layer in pipeline.unet.modules() if isinstance(layer, PackedLayer)]
    counts = {(len(layer.packed), len(layer.versions)) for layer in layers}
    assert {(2, 3), (3, 3)} <= counts  # full precision and one method, or two
    assert actual.bins == contents(saved.path).bins == ("0 to 0.25", "0.75 to 1")
    assert "for steps 0 to 0.25, 0.75 to 1 and elsewhere" in str(actual)
    rows = dict(parts(saved.graph, saved.qconfig, 16))
    assert rows["steps 0 to 0.25"] == "full precision"
    assert "probabilities of attention" in rows["steps 0.75 to 1"]
    assert "kmeans_a-3" in rows["steps elsewhere"]
    line = memory_of(tiny_model, saved.graph, [saved.qconfig]).line()
    assert re.search(r"denoiser .* \(packed [\d.]+ \w+ for all bins of steps\)", line)


def test_a_denoiser_without_its_pipeline_is_refused(saved: Saved, pipeline: Any) -> None:
    import diffusers

    cls = diffusers.StableDiffusionPipeline
    unattached = cls.from_pretrained(saved.path, dtype=torch.float32)
    copied = copy.deepcopy(pipeline.unet)
    for unet in (unattached.unet, load_quantized(saved.path / "unet"), copied):
        with pytest.raises(CheckpointError, match=r"change with .* \(0 to 0\.25, .*follow_steps"):
            guided(unattached, unet)
    assert follow_steps(unattached) is unattached
    expected = guided(pipeline, pipeline.unet)
    assert torch.equal(guided(unattached, unattached.unet), expected)


def test_steps_that_cannot_be_told_are_refused(saved: Saved, pipeline: Any) -> None:
    with pytest.raises(ValueError, match=r"bin of steps 0 to 0\.25 holds none .* 1 steps: widen"):
        guided(pipeline, pipeline.unet, steps=1)
    guided(pipeline, pipeline.unet)
    with pytest.raises(EvaluationError, match="has made all of its 4 steps"):
        pipeline.unet(torch.ones(1, 4, 8, 8), 500, torch.ones(1, 3, 16))
    other = load_pipeline(saved.model)  # whose scheduler moves, while that of `pipeline` does not
    pipeline.scheduler.set_timesteps(4)
    with pytest.raises(EvaluationError, match=r"stays at step 1 of 4: another scheduler.*follow_"):
        guided(other, pipeline.unet)


def test_weights_that_change_have_no_plain_form(saved: Saved) -> None:
    from diffusers import ControlNetModel

    pipeline = load_quantized(saved.path)
    for refused in (dequantized, ControlNetModel.from_unet, lambda unet: unet.dequantize()):
        with pytest.raises(ValueError, match="versions, for bins of the sampler's steps"):
            refused(pipeline.unet)
    pipeline.unet.fuse_qkv_projections()
    with pytest.raises(CheckpointError, match="replaced by plain ones, as by fuse_qkv_projections"):
        guided(pipeline, pipeline.unet)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("qconfig", {"schema": "qsdm/qconfig/3"}, "the configuration in config.json is malformed"),
        ("rounded", [{}], "rounded inputs of 3 parts of the steps"),
        ("rounded", [{}, {}, {"lost.weight": 4}], "rounds what the denoiser lacks"),
    ],
)
def test_a_damaged_configuration_is_refused(
    saved: Saved, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    for file in (saved.path / "unet").iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "config.json").read_text())
    about = config["quantization_config"] | {key: value}
    about = {k: v for k, v in about.items() if k not in ("checksum", "config_checksum")}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": about}))
    with pytest.raises(CheckpointError, match=message):
        load_quantized(tmp_path)
