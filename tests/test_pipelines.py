"""The pipelines of published models, small: from their files to a measured table, each as
``+model=any`` finds it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pipelines import BUILDERS, RESOLUTION_PX, build_model
from prompt_files import write_imagenet
from soak import soaked
from tiny import CAPTIONS

from qsdm import run, tracing
from qsdm.calibrate import calibrate
from qsdm.denoisers import Model, ModelError, load_pipeline, prompts_of, sampler_of
from qsdm.engine.serial import Serial
from qsdm.graph import Graph
from qsdm.measure import measure
from qsdm.measurement import drawer as drawing
from qsdm.measurement.drawer import Drawer
from qsdm.measurement.evaluator import Evaluator
from qsdm.measurement.protocol import protocol_of, seed_of
from qsdm.measurement.worker import read_full
from qsdm.metrics.fidelity import Psnr
from qsdm.metrics.frechet import FrechetLite0
from qsdm.outcome import EvaluationError, Objective
from qsdm.prompts import ImageNet
from qsdm.qconfig import QuantConfig, SpaceSpec
from qsdm.quant.calibrated import read_table
from qsdm.realize import realize
from qsdm.run import conf
from qsdm.store import Store
from qsdm.store.files import read_json, write_json
from qsdm.strategies import Problem
from qsdm.strategies.explorer import search_front
from qsdm.strategies.random import Random
from qsdm.trace import prepare, trace
from qsdm.workspace import Workspace

SPEC = SpaceSpec("small", ("uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4"))
METRICS = {"fd_lite0": FrechetLite0(), "psnr": Psnr()}
NUM_IMAGES = 4
FULL: dict[str, Any] = {"num_images": NUM_IMAGES, "batch_size": 2, "engine": Serial()}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("pipelines")
    (folder / "captions.json").write_text(json.dumps(CAPTIONS))
    write_imagenet(folder)
    texts, classes = str(folder / "captions.json"), ImageNet(str(folder))
    return {
        name: build_model(
            name,
            folder / name,
            metrics=METRICS,
            prompts=classes if name == "DiTPipeline" else texts,
        )
        for name in BUILDERS
    }


def test_the_table_names_the_classes(models: dict[str, Model]) -> None:
    for name, model in models.items():
        assert type(load_pipeline(model)).__name__ == name


@pytest.mark.parametrize(
    "name", soaked(BUILDERS, {"StableDiffusionPipeline", "FluxPipeline", "DiTPipeline"})
)
def test_from_the_files_to_a_measured_table(
    name: str, models: dict[str, Model], tmp_path: Path
) -> None:
    model, place = models[name], Store(tmp_path, name)
    graph = trace(Workspace(model, root=tmp_path))
    module, _, origin = prepare(model)
    assert origin == (name if name != "DiTPipeline" else "signature and config")
    fused = {
        path for path in tracing.uncovered(module, graph) if ".pooler." not in path
    }  # of Hunyuan-DiT's attention
    assert not fused

    calibrate(Workspace(model, SPEC, tmp_path))
    outcomes = measure(Workspace(model, SPEC, tmp_path), num_configs=2, **FULL)
    assert len(outcomes) == 2
    assert all(set(outcome.metrics) == set(METRICS) for outcome in outcomes)
    (full,) = place.path("pictures").glob("full-*.safetensors")
    assert (
        np.abs(read_full(full).astype(int) - drawn(model)).max() <= 1
    )  # convolutions sum in another order

    write_front(place, SPEC.of(graph))
    summary = realize(
        Workspace(model, SPEC, tmp_path),
        Objective({"fd_lite0": -1}),
        candidates=1,
        num_random=1,
        **FULL,
    )
    rows = {row["name"]: row for row in summary["rows"]}
    assert set(rows) == {"fp", *SPEC.methods, "random-0", "ours"}
    assert all(0 < row["metrics"]["psnr"] < 100 for name, row in rows.items() if name != "fp")
    assert rows["uaq-4"]["metrics"]["psnr"] > rows["uaq-3"]["metrics"]["psnr"]
    assert rows["kmeans_a-4"]["metrics"]["psnr"] > rows["kmeans_a-3"]["metrics"]["psnr"]
    assert rows["ours"]["avg_bits"] <= 4.5
    assert place.path("pictures/comparison.png").stat().st_size > 1000


def drawn(model: Model) -> np.ndarray:
    """What the bare pipeline draws for the first pictures of seed set 0, in the same batches."""
    prompts, batches = prompts_of(model), []
    for first in range(0, NUM_IMAGES, 2):
        places = range(first, first + 2)
        what: dict[str, Any] = {"prompt": [prompts[i] for i in places], "height": 64, "width": 64}
        if isinstance(model.prompts, ImageNet):
            what = {"class_labels": [prompts[i].index for i in places]}
        made = load_pipeline(model)(
            **what,
            num_inference_steps=2,
            guidance_scale=2.0,
            generator=[torch.Generator().manual_seed(seed_of(0, i)) for i in places],
            output_type="np",
            **model.call,
        )
        batches.append((made.images * 255).round().astype(np.uint8))
    return np.concatenate(batches)


def write_front(place: Store, space: Any) -> None:
    """A front whose predictions are made up."""
    problem = Problem.of(space, read_table(place.path("calibration/small")))

    def predict(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return genes.sum(axis=1) / genes.shape[1], np.zeros(len(genes))

    about = {
        "schema": "qsdm/front/1",
        "denoiser": space.graph.denoiser,
        "space": "small",
        "objective": {"fd_lite0": -1},
    }
    write_json(
        place.path("search/small.json"),
        about | search_front(predict, problem, Random(), evaluations=20),
    )


def evaluator(model: Model, num_images: int = 2) -> Evaluator:
    protocol = protocol_of(model, prompts_of(model), 0, num_images)
    drawer = Drawer(model, Graph(model.name, (), ()), None)
    return Evaluator(drawer, {}, protocol, prompts_of(model))


@pytest.mark.parametrize("name", BUILDERS)
def test_bfloat16_draws_almost_the_same(
    name: str, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        drawing, "computed_in", lambda dtype: getattr(torch, dtype)
    )  # whatever the processor
    full = QuantConfig(name, {})
    single = evaluator(models[name]).pictures(full).astype(int)
    half = evaluator(dataclasses.replace(models[name], dtype="bfloat16")).pictures(full).astype(int)
    assert 0 < np.abs(half - single).mean() < 3


def test_a_class_is_drawn_whatever_else_is_in_its_batch(models: dict[str, Model]) -> None:
    model = models["DiTPipeline"]
    pair = evaluator(model).pictures(QuantConfig(model.name, {}))
    alone = evaluator(model).pictures(QuantConfig(model.name, {}), 1, 2)
    assert np.abs(pair[1:].astype(int) - alone.astype(int)).max() <= 1
    assert evaluator(model).captions == [str(label) for label in prompts_of(model)[:2]]
    texts = models["StableDiffusionPipeline"].prompts
    with pytest.raises(
        ModelError, match=r"DiTPipeline draws classes: give prompts=imagenet \(got captions\)"
    ):
        evaluator(dataclasses.replace(model, prompts=texts)).pictures(QuantConfig(model.name, {}))


def test_classes_are_drawn_by_their_names_where_a_pipeline_takes_texts(
    models: dict[str, Model],
) -> None:
    model = dataclasses.replace(
        models["StableDiffusionPipeline"], prompts=models["DiTPipeline"].prompts
    )
    assert evaluator(model).pictures(QuantConfig(model.name, {})).std() > 1


def test_pictures_of_another_size_than_the_protocols_are_refused(models: dict[str, Model]) -> None:
    model = dataclasses.replace(models["DiTPipeline"], resolution_px=2 * RESOLUTION_PX)
    with pytest.raises(
        EvaluationError, match=r"DiTPipeline draws pictures of 64 x 64 px, not of 128"
    ):
        evaluator(model).pictures(QuantConfig(model.name, {}))


def test_another_sampler_takes_the_place_of_the_pipelines(models: dict[str, Model]) -> None:
    model = dataclasses.replace(models["DiTPipeline"], sampler="DPMSolverMultistepScheduler")
    pipeline = load_pipeline(model)
    assert type(pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert pipeline.scheduler.config.steps_offset == 1  # as the DDIM sampler had it
    assert sampler_of(model).startswith("DPMSolverMultistepScheduler ")
    assert sampler_of(models["DiTPipeline"]).startswith("DDIMScheduler ")
    full = QuantConfig(model.name, {})
    assert not np.array_equal(
        evaluator(model).pictures(full), evaluator(models["DiTPipeline"]).pictures(full)
    )


def test_one_command_line_after_the_other(
    models: dict[str, Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Classes by ``prompts=imagenet``; CLIP scores and all other metrics by ``metrics=emoji``."""
    monkeypatch.chdir(tmp_path)
    model = models["DiTPipeline"]
    assert isinstance(model.prompts, ImageNet)
    chosen = ["+model=any", f"model.path={model.path}", "model.name=small", "model.steps=1"]
    assert run.execute(trace, chosen) == 0
    assert run.execute(calibrate, chosen) == 0
    prompts = ["prompts=imagenet", f"prompts.path={model.prompts.path}", "metrics=emoji"]
    sizes = ["num_configs=1", "num_images=2", "engine=serial"]
    assert run.execute(measure, [*chosen, *prompts, *sizes]) == 0
    (protocol,) = Store(tmp_path / "store", "small").protocols().values()
    assert protocol.resolution_px == RESOLUTION_PX
    outcomes = Store(tmp_path / "store", "small").outcomes(protocol)
    assert sorted(len(outcome.qconfig.methods) for outcome in outcomes)[0] == 0
    emoji = set(OmegaConf.load(conf.CONF / "metrics/emoji.yaml"))
    assert all(set(outcome.metrics) == emoji for outcome in outcomes)
    assert read_json(tmp_path / "store/small/graph.json")
