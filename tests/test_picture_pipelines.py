"""Pipelines that start from pictures or draw videos: traced with all weights, and measured with the
right pictures.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pipelines
import pytest
import torch
from edit_files import write_edits
from picture_pipelines import BUILDERS, CALLS
from PIL import Image
from soak import soaked
from tiny import CAPTIONS

from qsdm import run, tracing
from qsdm.calibrate import calibrate
from qsdm.denoisers import Model, discover, load_pipeline, prompts_of
from qsdm.engine.serial import Serial
from qsdm.graph import Graph
from qsdm.measure import measure
from qsdm.measurement.drawer import Drawer, channels_last
from qsdm.measurement.evaluator import Evaluator
from qsdm.measurement.protocol import protocol_of, seed_of
from qsdm.measurement.worker import read_full
from qsdm.metrics.fidelity import Psnr
from qsdm.prompts import PromptsError
from qsdm.prompts.edits import Edits
from qsdm.qconfig import QuantConfig, SpaceSpec
from qsdm.quant.calibrated import PackedWeights
from qsdm.store import Store
from qsdm.trace import prepare, trace
from qsdm.workspace import Workspace

SPEC = SpaceSpec("small", ("kmeans_a-3", "kmeans_a-4"))
NUM, STEPS, GUIDANCE = 4, 4, 2.0
TEXT_ONLY = ("WanPipeline",)
INPAINTING = [name for name in BUILDERS if "Inpaint" in name or "Fill" in name]
FAST = {
    "StableDiffusionInpaintPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLInpaintPipeline",
    "StableDiffusion3Img2ImgPipeline",
    "FluxFillPipeline",
    "FluxControlPipeline",
    "WanPipeline",
}
MEASURED = {  # with what is given beside the caption to a direct call
    "StableDiffusionInpaintPipeline": {"image": "", "mask_image": ".mask"},
    "StableDiffusionImg2ImgPipeline": {"image": ""},
    "StableDiffusionInstructPix2PixPipeline": {"image": ""},
    "StableDiffusionControlNetPipeline": {"image": ".control"},
    "FluxFillPipeline": {"image": "", "mask_image": ".mask"},
    "WanPipeline": {},
}

pytestmark = [
    pytest.mark.slow,
    # Of the depth estimator's autocast to float32, by StableDiffusionDepth2ImgPipeline.
    pytest.mark.filterwarnings("ignore:In CPU autocast"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_edits(folder / "edits", NUM)
    write_edits(folder / "others", NUM, seed=1)
    (folder / "captions.json").write_text(json.dumps(CAPTIONS))
    return folder


def build(name: str, folder: Path, **fields: Any) -> Model:
    """The pipeline of class ``name``, saved once and found as ``+model=any`` finds it."""
    if not (folder / name).exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            BUILDERS[name]().save_pretrained(folder / name)
    prompts: Any = str(folder / "captions.json")
    if name not in TEXT_ONLY:
        prompts = Edits(str(folder / "edits"))
    options: dict[str, Any] = {
        "resolution_px": pipelines.RESOLUTION_PX,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "call": CALLS.get(name, {}),
        "prompts": prompts,
        "metrics": {"psnr": Psnr()},
    }
    return discover(str(folder / name), name, **(options | fields))


def evaluator(model: Model, num_images: int = 2) -> Evaluator:
    prompts = prompts_of(model)
    protocol = protocol_of(model, prompts, 0, num_images)
    return Evaluator(Drawer(model, Graph(model.name, (), ()), None), {}, protocol, prompts)


@pytest.mark.parametrize("name", soaked(BUILDERS, FAST))
def test_it_is_traced_from_its_own_call(name: str, folder: Path, tmp_path: Path) -> None:
    if name == "WanImageToVideoPipeline" and importlib.util.find_spec("ftfy") is None:
        pytest.skip("this pipeline cleans captions by ftfy, which is not installed")
    model = build(name, folder)
    graph = trace(Workspace(model, root=tmp_path))
    module, _, origin = prepare(model)
    assert origin == name
    assert tracing.uncovered(module, graph) == []
    assert graph.num_values > 0


@pytest.mark.parametrize(
    "name", soaked([name for name in BUILDERS if name not in TEXT_ONLY], FAST - set(TEXT_ONLY))
)
def test_what_is_given_decides_what_is_drawn(name: str, folder: Path) -> None:
    if name == "WanImageToVideoPipeline" and importlib.util.find_spec("ftfy") is None:
        pytest.skip("this pipeline cleans captions by ftfy, which is not installed")
    model, full = build(name, folder), QuantConfig(name, {})
    ready = evaluator(model)
    pair = ready.pictures(full).astype(int)
    ready.drawer.batch_size = 1  # two entries of a batch do not touch each other
    assert np.abs(ready.pictures(full).astype(int) - pair).max() <= 1
    other = dataclasses.replace(model, prompts=Edits(str(folder / "others")))
    # The same entries draw the same bits, so whatever changes comes from the pictures alone: of
    # random weights from 0.04 levels per pixel (FLUX Kontext) to 10 (the SDXL refiner).
    assert np.array_equal(evaluator(model).pictures(full), pair)
    assert not np.array_equal(evaluator(other).pictures(full), pair)
    frames = ready.protocol.frames
    assert pair.shape == (2 * frames, pipelines.RESOLUTION_PX, pipelines.RESOLUTION_PX, 3)


@pytest.mark.parametrize("name", INPAINTING)
def test_another_mask_draws_another_picture(name: str, folder: Path, tmp_path: Path) -> None:
    model, full = build(name, folder), QuantConfig(name, {})
    write_edits(tmp_path / "edits", 2)
    for i in range(2):  # the other half
        Image.fromarray(
            255 - np.array(Image.open(folder / "edits" / f"{i}.mask.png"))
        ).save(tmp_path / "edits" / f"{i}.mask.png")  # fmt: skip
    other = dataclasses.replace(model, prompts=Edits(str(tmp_path / "edits")))
    change = np.abs(evaluator(other).pictures(full).astype(int) - evaluator(model).pictures(full))
    assert change.mean() > 1


@pytest.mark.parametrize("name", soaked(MEASURED, FAST & set(MEASURED)))
def test_it_is_measured_from_the_pictures_that_a_direct_call_draws(
    name: str, folder: Path, tmp_path: Path
) -> None:
    model, place = build(name, folder), Store(tmp_path, name)
    trace(Workspace(model, root=tmp_path))
    calibrate(Workspace(model, SPEC, tmp_path))
    (outcome,) = measure(
        Workspace(model, SPEC, tmp_path),
        num_configs=1,
        num_images=NUM,
        batch_size=2,
        engine=Serial(),
    )
    assert outcome.num_images == NUM
    assert 0 < outcome.metrics["psnr"] < 100
    (full,) = place.path("pictures").glob("full-*.safetensors")
    direct = drawn_directly(model, name, folder)
    assert np.array_equal(read_full(full), direct)
    (protocol,) = place.protocols().values()
    assert len(direct) == NUM * protocol.frames
    assert protocol.frames == (4 if name == "WanPipeline" else 1)


def drawn_directly(model: Model, name: str, folder: Path) -> np.ndarray:
    """What diffusers alone draws, with the same generators, batches and memory layout."""
    batches = []
    for first in range(0, NUM, 2):
        pipeline = load_pipeline(model)
        channels_last(getattr(pipeline, model.component), pipeline.vae)
        places = [first, first + 1]
        given: dict[str, Any] = {
            argument: [
                Image.open(folder / "edits" / f"{i}{ending}.png").convert(
                    "L" if "mask" in argument else "RGB"
                )
                for i in places
            ]
            for argument, ending in MEASURED[name].items()
        }
        texts = [f"a cat, number {i}" for i in places]
        if name in TEXT_ONLY:
            texts = [CAPTIONS[i] for i in places]
        if name in (*TEXT_ONLY, "FluxFillPipeline"):  # which draw 1024 px of any picture
            given |= {"height": 64, "width": 64}
        output = pipeline(
            prompt=texts,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed_of(0, i)) for i in places],
            output_type="np",
            **CALLS.get(name, {}),
            **given,
        )
        is_video = name == "WanPipeline"  # of 9 frames
        values = np.concatenate(output.frames[:, [1, 3, 5, 7]]) if is_video else output.images
        batches.append((torch.from_numpy(values) * 255).round().byte().numpy())
    return np.concatenate(batches)


def test_of_two_denoisers_the_one_named_is_quantized(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first, second = (
        build("WanPipeline", folder, component=component)
        for component in ("transformer", "transformer_2")
    )
    assert (first.name, second.name) == ("WanPipeline", "WanPipeline-transformer_2")
    trace(Workspace(first, root=tmp_path))
    assert (
        "transformer_2 is another denoiser of this pipeline: "
        "trace it with +model.component=transformer_2" in capsys.readouterr().out
    )
    graphs = {model.name: trace(Workspace(model, root=tmp_path)) for model in (first, second)}
    for model in (first, second):
        calibrate(Workspace(model, SPEC, tmp_path))
        assert measure(
            Workspace(model, SPEC, tmp_path),
            num_configs=1,
            num_images=2,
            batch_size=2,
            engine=Serial(),
        )
    graph = graphs[second.name]
    qconfig = SPEC.of(graph).uniform("kmeans_a-3")
    packed = PackedWeights(Store(tmp_path, second.name).path("calibration/small"))
    prompts = prompts_of(second)
    drawer = Drawer(second, graph, packed)
    ready = Evaluator(drawer, {}, protocol_of(second, prompts, 0, 2), prompts)
    plain = load_pipeline(second)
    ready.pictures(qconfig)
    for name in ("transformer", "transformer_2"):
        before = dict(getattr(plain, name).named_parameters())
        after = dict(getattr(drawer.pipeline, name).named_parameters())
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        assert bool(changed) == (name == "transformer_2")


def test_the_command_lines(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """An inpainting pipeline from its directory to a table; captions and a lacking mask are refused
    at once.
    """
    monkeypatch.chdir(tmp_path)
    model = build("StableDiffusionInpaintPipeline", folder)
    chosen = ["+model=any", f"path={model.path}", "model.steps=2", "model.resolution_px=64"]
    assert run.execute(trace, chosen) == 0
    assert run.execute(calibrate, chosen) == 0
    rest = ["metrics=emoji", "engine=serial", "num_images=2", "num_configs=1"]
    texts = ["prompts=captions", f"prompts.path={folder / 'captions.json'}"]
    capsys.readouterr()
    assert run.execute(measure, [*chosen, *texts, *rest]) == 1
    assert capsys.readouterr().err.strip() == (
        "error: StableDiffusionInpaintPipeline wants a picture and a mask for every caption: "
        "give prompts=edit prompts.path=FOLDER (got texts)"
    )
    assert not list(Path("store").rglob("pictures"))
    edits = ["prompts=edit", f"prompts.path={folder / 'edits'}"]
    assert run.execute(measure, [*chosen, *edits, *rest]) == 0


def test_a_model_of_texts_refuses_pictures_before_it_is_loaded(folder: Path) -> None:
    model = build("WanPipeline", folder, prompts=Edits(str(folder / "edits")))
    with pytest.raises(PromptsError, match="WanPipeline takes no picture"):
        evaluator(model)


def test_strength_that_leaves_no_step_is_told(folder: Path) -> None:
    model = build("StableDiffusionXLImg2ImgPipeline", folder, steps=2)
    with pytest.raises(Exception, match=r"strength \* steps = 0.3 \* 2 steps"):
        evaluator(model)


def test_inputs_are_built_where_the_call_fails(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    import diffusers

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ValueError("no such picture\nsecond line")

    monkeypatch.setattr(diffusers.StableDiffusionInpaintPipeline, "check_inputs", fail)
    model = build("StableDiffusionInpaintPipeline", folder)
    graph = trace(Workspace(model, root=tmp_path))
    assert tracing.uncovered(prepare(model)[0], graph) == []
    told = (
        "  inputs       signature and config, because StableDiffusionInpaintPipeline could not be "
        "called (no such picture); built\n"
    )
    assert told in capsys.readouterr().out


def test_inputs_of_ones_own_are_taken_where_a_pipeline_wants_pictures(
    folder: Path, tmp_path: Path
) -> None:
    model = build("StableDiffusionInpaintPipeline", folder, inputs={"sample": [1, 9, 16, 16]})
    graph = trace(Workspace(model, root=tmp_path))
    assert tracing.uncovered(prepare(model)[0], graph) == []
    (sample,) = [node for node in graph.nodes if node.name == "input.sample"]
    assert sample.activation == (1, 9, 16, 16)
