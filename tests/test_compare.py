"""compare: any pipelines on the same captions and noise, in pairs; resumable; limits for CI."""

from __future__ import annotations

import html.parser
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import single_files
import torch
from safetensors.torch import save_file
from tiny import CAPTIONS
from torch import nn

import qsdm
from qsdm import run
from qsdm.calibrate import calibrate
from qsdm.checkpoint import save_quantized
from qsdm.compare import LimitExceeded, compare, folder_name
from qsdm.denoisers import Model, ModelError, load_pipeline
from qsdm.engine import EngineError
from qsdm.engine.local import Local
from qsdm.engine.serial import Serial
from qsdm.measure import measure
from qsdm.measurement import pictures
from qsdm.measurement.contender import Contender
from qsdm.measurement.drawer import Drawer, compute_in
from qsdm.measurement.spelling import Chosen, read_contenders, read_options
from qsdm.metrics.fidelity import Psnr
from qsdm.outcome import EvaluationError
from qsdm.prompts import Captions
from qsdm.qconfig import SpaceSpec
from qsdm.run import keys
from qsdm.store import StoreError
from qsdm.store.schemas import COMPARISON
from qsdm.trace import trace
from qsdm.workspace import Workspace

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SPACE = SpaceSpec("small", ("uaq-3", "uaq-4"))
OPTIONS = ":steps=2,guidance=2.0"


@pytest.fixture(scope="module")
def workspace(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The tiny model, traced and calibrated."""
    workspace = Workspace(tiny_model, SPACE, tmp_path_factory.mktemp("store"))
    trace(Workspace(tiny_model, root=workspace.root), page=False)
    calibrate(workspace)
    return workspace


@pytest.fixture(scope="module")
def packed(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of qsdm of the tiny pipeline, with 3 bits per value."""
    folder = tmp_path_factory.mktemp("packed") / "packed"
    space = workspace.space
    pipeline = load_pipeline(workspace.model)
    save_quantized(pipeline, "unet", space.graph, space.uniform("uaq-3"), folder)
    return folder


@pytest.fixture
def options(tiny_model: Model, tmp_path: Path) -> dict[str, Any]:
    """Arguments of `compare` beside the pipelines."""
    assert isinstance(tiny_model.prompts, str)
    return {
        "store": tmp_path / "store",
        "out": tmp_path / "out",
        "prompts": Captions(tiny_model.prompts),
        "metrics": tiny_model.metrics,
        "num_images": 8,
        "shard": 3,
        "engine": Serial(),
    }


def reference(model: Model) -> str:
    return f"{model.path}{OPTIONS}"


def rows(content: Any, **chosen: str) -> list[Any]:
    """The differences with these values."""
    return [
        row
        for row in content["differences"]
        if all(row[key] == value for key, value in chosen.items())
    ]


def test_a_pipeline_does_not_differ_from_itself(
    tiny_model: Model, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    content = compare([reference(tiny_model), reference(tiny_model)], **options)
    (row,) = content["differences"]  # PSNR is not defined for the reference
    assert (row["metric"], row["value"], row["standard_error"]) == ("fd_lite0", 0.0, 0.0)
    assert row["verdict"] == "no difference seen"
    first, second = content["pipelines"]
    assert first["metrics"]["psnr"] is None
    assert second["metrics"]["psnr"] == 100.0  # as far as it is counted: no pixel differs
    assert second["per_drawing"]["psnr"] == [100.0] * 8
    printed = capsys.readouterr().out
    assert "no difference seen" in printed
    assert "better" not in printed
    assert "worse" not in printed
    page = (options["out"] / "compare.html").read_text(encoding="utf-8")
    assert "no difference seen" in page
    assert not re.search(r'class="(better|worse)"', page)


def test_a_checkpoint_measures_what_measure_says(
    workspace: Workspace, packed: Path, options: dict[str, Any]
) -> None:
    qconfig = workspace.space.uniform("uaq-3")
    path = options["store"] / "configs.json"
    path.parent.mkdir()
    path.write_text(json.dumps([qconfig.to_json()]))
    (outcome,) = measure(workspace, configs=path, num_images=8, engine=Serial())
    content = compare([reference(workspace.model), str(packed)], **options)
    _, quantized = content["pipelines"]
    assert quantized["name"] == "packed"
    for name, value in outcome.metrics.items():
        assert quantized["metrics"][name] == pytest.approx(value, rel=1e-3), name
    (row,) = rows(content, metric="fd_lite0")
    assert row["low"] < row["value"] < row["high"]
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * row["standard_error"])
    assert (
        quantized["size_bytes"]
        == (packed / "unet/diffusion_pytorch_model.safetensors").stat().st_size
    )
    assert COMPARISON.read(options["out"] / "compare.json") == content


def test_every_two_pipelines_are_compared(
    tiny_model: Model, packed: Path, options: dict[str, Any]
) -> None:
    fewer = f"{tiny_model.path}:steps=1,guidance=2.0"
    content = compare([reference(tiny_model), str(packed), fewer], **options)
    names = [entry["name"] for entry in content["pipelines"]]
    assert names == ["pipeline steps=2 guidance=2.0", "packed", "pipeline steps=1 guidance=2.0"]
    assert [(r["first"], r["second"]) for r in rows(content, metric="fd_lite0")] == [
        (names[0], names[1]),
        (names[0], names[2]),
        (names[1], names[2]),
    ]
    (between,) = rows(content, metric="psnr")
    assert (between["first"], between["second"]) == (names[1], names[2])
    first, second = (np.mean(e["per_drawing"]["psnr"]) for e in content["pipelines"][1:])
    assert between["value"] == pytest.approx(second - first, rel=1e-4)
    steps = [entry["protocol"]["steps"] for entry in content["pipelines"]]
    assert steps == [2, 2, 1]


class Page(html.parser.HTMLParser):
    """Tags, and what a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value for key, value in attrs if key in ("src", "href") and value]


def test_the_page_shows_the_captions_that_changed_most_and_needs_nothing(
    tiny_model: Model, packed: Path, options: dict[str, Any]
) -> None:
    options |= {"num_images": 20}  # of 8 captions
    content = compare([reference(tiny_model), str(packed)], **options)
    psnr = content["pipelines"][1]["per_drawing"]["psnr"]
    shown = [entry["number"] for entry in content["captions"]]
    assert shown[0] == int(np.argmin(psnr))
    assert [entry["caption"] for entry in content["captions"]] == [CAPTIONS[i % 8] for i in shown]
    assert sorted(entry["caption"] for entry in content["captions"]) == sorted(CAPTIONS)
    for number, caption in ((n, CAPTIONS[n % 8]) for n in shown):
        assert psnr[number] == min(psnr[i] for i in range(20) if CAPTIONS[i % 8] == caption)
    text = (options["out"] / "compare.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("img") == 2 * len(CAPTIONS)
    assert not {"script", "iframe", "object"} & set(page.tags)
    assert all(target.startswith(("data:", "#")) for target in page.loaded)
    assert all(caption in text for caption in CAPTIONS)
    assert (options["out"] / "changed_most.png").read_bytes()[1:4] == b"PNG"


def test_ten_captions_are_shown_of_more(
    tiny_model: Model, packed: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    captions = [f"house {letter}" for letter in "abcdefghijkl"]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    options |= {"num_images": 12, "prompts": Captions(str(tmp_path / "captions.json"))}
    content = compare([reference(tiny_model), str(packed)], **options)
    psnr = content["pipelines"][1]["per_drawing"]["psnr"]
    worst = np.argsort(psnr, kind="stable")[:10]
    assert [entry["number"] for entry in content["captions"]] == worst.tolist()


def test_an_interrupted_run_draws_nothing_twice(
    tiny_model: Model, packed: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = Drawer.draw

    def counted(self: Drawer, qconfig: Any, drawings: Sequence[Any], frames: int = 1) -> Any:
        if len(drawn) == 11:
            drawn.append(-1)
            raise KeyboardInterrupt
        drawn.extend(drawing.number for drawing in drawings)
        return draw(self, qconfig, drawings, frames)

    monkeypatch.setattr(Drawer, "draw", counted)
    with pytest.raises(KeyboardInterrupt):
        compare([reference(tiny_model), str(packed)], **options)
    assert drawn == [*range(8), 0, 1, 2, -1]
    content = compare([reference(tiny_model), str(packed)], **options)
    assert drawn == [*range(8), 0, 1, 2, -1, 3, 4, 5, 6, 7]
    assert (
        compare([reference(tiny_model), str(packed)], **options)["pipelines"]
        == content["pipelines"]
    )
    compare([reference(tiny_model), str(packed)], **options | {"metrics": {"psnr": Psnr()}})
    assert len(drawn) == 17, "other metrics need no new pictures"


def test_damaged_pictures_are_drawn_again(
    tiny_model: Model, packed: Path, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    content = compare([reference(tiny_model), str(packed)], **options)
    (path, *_) = sorted(options["store"].rglob("3-6.safetensors"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    again = compare([reference(tiny_model), str(packed)], **options)
    assert again["differences"] == content["differences"]
    assert "drawn again" in capsys.readouterr().err


@pytest.mark.soak
def test_a_worker_tells_seconds_and_memory(tiny_model: Model, options: dict[str, Any]) -> None:
    options |= {"engine": Local(num_workers=1)}
    one_step = f"{tiny_model.path}:steps=1,guidance=2.0"
    content = compare([reference(tiny_model), one_step], **options)
    for entry in content["pipelines"]:
        assert entry["device"] in ("cpu", "cuda")
        assert entry["picture_s"] > 0
        assert entry["load_s"] > 0
        assert 1e7 < entry["peak_bytes"] < 1e11


def test_a_limit_is_the_worst_value_that_is_allowed(
    tiny_model: Model, packed: Path, options: dict[str, Any]
) -> None:
    both = [reference(tiny_model), str(packed)]
    content = compare(both, **options)
    values = content["pipelines"][1]["metrics"]
    exact = {"psnr": values["psnr"], "fd_lite0": values["fd_lite0"]}
    kept = compare(both, limit=exact, **options)
    assert all(line["kept"] for line in kept["limits"])
    shutil.rmtree(options["out"])
    with pytest.raises(LimitExceeded, match=r"packed: psnr .* is below limit\.psnr=90; packed: fd"):
        compare(both, limit={"psnr": 90, "fd_lite0": 0.5 * values["fd_lite0"]}, **options)
    stored = COMPARISON.read(options["out"] / "compare.json")
    assert [line["kept"] for line in stored["limits"]] == [False, False]
    assert "is above limit.fd_lite0" in (options["out"] / "compare.html").read_text()


def test_the_command_line(
    tiny_model: Model,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(packed, tmp_path / "small")
    arguments = [
        reference(tiny_model),
        "small",
        "prompts=captions",
        f"prompts.path={tiny_model.prompts}",
        "num_images=4",
        "engine=serial",
        "out=out",
    ]
    assert run.execute(compare, [*arguments, "limit.psnr=1"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^PSNR, dB +– +\d+\.\d\d ± ", printed, re.MULTILINE)
    assert "lite0 distance" in printed  # of metrics that need no files
    assert run.execute(compare, [*arguments, "limit.psnr=90"]) == 1
    assert re.search(r"error: small: psnr .* is below limit\.psnr=90", capsys.readouterr().err)
    assert run.execute(compare, [*arguments, "limit.fid=9"]) == 1
    assert "fid is not measured" in capsys.readouterr().err
    assert run.execute(compare, arguments[:1]) == 1
    assert "wanted two or more pipelines" in capsys.readouterr().err
    assert run.execute(compare, ["num_images=4"]) == 1
    assert "pipelines" in capsys.readouterr().err


def test_models_of_conf_are_pipelines_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["emoji_unet:steps=2", "emoji_unet:steps=1", "num_images=4", "engine=serial"]
    assert run.execute(compare, arguments) == 0
    printed = capsys.readouterr().out
    assert "emoji_unet steps=1 − emoji_unet steps=2" in printed
    assert re.search(r"^fd_lite0 +[+−]\d+\.\d +[+−]\d+\.\d to [+−]", printed, re.MULTILINE)
    assert (tmp_path / "store/emoji_unet/compare/emoji_unet_steps=1/compare.html").exists()


def test_help_is_fast_and_names_the_pipelines() -> None:
    """No heavy package is imported for it."""
    code = (
        "import runpy, sys; sys.argv[1:] = ['--help']\n"
        "try: runpy.run_module('qsdm.compare', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print({'torch', 'diffusers', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pipelines=VALUE" in done.stdout
    assert "limit=" in done.stdout
    assert done.stdout.rstrip().endswith("set()"), "heavy imports"


def test_a_folder_is_named_after_the_others() -> None:
    contenders = [
        Contender(name, qsdm.open("emoji_unet").model) for name in ("a", "../b", "c steps=4")
    ]
    assert folder_name(contenders) == "_b+c_steps=4"
    assert folder_name([contenders[0], Contender("..", contenders[0].model)]) == "others"


def test_bare_arguments_are_the_pipelines() -> None:
    spelled = keys.spelled(
        ["a/b", "--cfg", "job", "it's:steps=4,guidance=1", "num_images=4", "limit.psnr=3"], compare
    )
    assert spelled == [
        "--cfg",
        "job",
        "num_images=4",
        "++limit.psnr=3",
        r"pipelines=['a/b','it\'s:steps=4,guidance=1']",
    ]
    assert keys.positional(measure) is None


@pytest.mark.parametrize(
    ("spelling", "path", "options"),
    [
        ("emoji_unet", "emoji_unet", {}),
        ("a/b:steps=4", "a/b", {"steps": 4}),
        ("a:b:steps=4,call.x=y z", "a:b", {"steps": 4, "call.x": "y z"}),
        (
            "a:name=4 steps, fast,load.variant=fp16",
            "a",
            {"name": "4 steps, fast", "load.variant": "fp16"},
        ),
    ],
)
def test_options_follow_a_colon(spelling: str, path: str, options: dict[str, Any]) -> None:
    assert read_options(spelling) == (path, options)


def test_what_is_not_given_is_as_for_the_reference(tiny_model: Model, packed: Path) -> None:
    chosen = Chosen(lambda name: tiny_model if name == "tiny" else None, metrics={"psnr": Psnr()})
    first, second, third, fourth = read_contenders(
        ["tiny:steps=7", "tiny", str(packed), f"{packed / 'unet'}:steps=3,name=x"], chosen
    )
    assert [c.model.steps for c in (first, second, third, fourth)] == [7, 2, 7, 3]
    assert third.model.resolution_px == tiny_model.resolution_px
    assert third.model.prompts == tiny_model.prompts
    assert fourth.model.path == tiny_model.path
    assert fourth.denoiser == packed / "unet"
    assert [c.name for c in (first, second, third, fourth)] == [
        "tiny steps=7",
        "tiny",
        "packed",
        "x",
    ]


def test_a_denoiser_alone_draws_as_its_pipeline(
    tiny_model: Model, packed: Path, options: dict[str, Any]
) -> None:
    content = compare([reference(tiny_model), str(packed), str(packed / "unet")], **options)
    _, whole, alone = content["pipelines"]
    assert alone["metrics"] == whole["metrics"]
    assert alone["size_bytes"] == whole["size_bytes"]
    assert alone["protocol"]["weights"] != whole["protocol"]["weights"]


def test_a_single_file_draws_as_its_pipeline(
    tiny_model: Model, tiny_pipeline: DiffusionPipeline, options: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "denoiser.safetensors"
    save_file(single_files.original(tiny_pipeline, unet_only=True), file)
    content = compare([reference(tiny_model), str(file)], **options)
    _, single = content["pipelines"]
    assert single["name"] == "denoiser.safetensors"
    assert single["metrics"]["psnr"] == 100.0
    assert single["size_bytes"] == file.stat().st_size


@pytest.mark.parametrize(
    ("others", "changes", "message"),
    [
        ([], {}, "wanted two or more pipelines"),
        (["{packed}"], {"num_images": 1}, "wanted num_images of at least 2"),
        (["{empty}"], {}, "has no model_index.json"),
        (["no/such/folder"], {}, "no file or directory"),
        (["{packed}:stepps=4"], {}, "takes no option 'stepps'"),
        (["{packed}:steps=0"], {}, "must be positive"),
        (["{packed}/unet:load.torch_dtype=float16"], {}, r"are read \(got load.torch_dtype\)"),
        (["{packed}:steps=many"], {}, "packed"),
        (["{packed}"], {"limit": {"fid": 3}}, "limit.fid: fid is not measured"),
        (["{packed}"], {"limit": {"psnr": float("nan")}}, "wanted a finite number"),
        (["{packed}"], {"out": Path(__file__)}, "is a file, and a folder is to be written"),
        (["emoji_unet"], {}, "draws pictures of 32 px and .* of 16"),
        (["{sdnq}"], {}, "is quantized by sdnq, which is not installed: `pip install sdnq`"),
        (["{gguf}"], {}, "gguf is not installed: `pip install gguf`"),
        (["{classes}"], {}, "draws classes and .* captions"),
    ],
)
def test_bad_input_gets_one_sentence(
    others: list[str],
    changes: dict[str, Any],
    message: str,
    tiny_model: Model,
    packed: Path,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qsdm.denoisers.faults.is_installed", lambda _name: False)
    monkeypatch.setattr("qsdm.checkpoint.opening.is_installed", lambda _name: False)
    for kind in ("sdnq", "classes"):
        folder = tmp_path / kind
        shutil.copytree(tiny_model.path, folder)
        if kind == "sdnq":
            path = folder / "unet/config.json"
            config = json.loads(path.read_text()) | {
                "quantization_config": {"quant_method": "sdnq"}
            }
        else:
            path = folder / "model_index.json"
            config = json.loads(path.read_text()) | {"_class_name": "DiTPipeline"}
        path.write_text(json.dumps(config))
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    places = {"packed": packed, "gguf": tmp_path / "model.gguf"}
    places |= {kind: tmp_path / kind for kind in ("sdnq", "empty", "classes")}
    spellings = [reference(tiny_model), *(other.format_map(places) for other in others)]
    with pytest.raises((ValueError, ModelError, StoreError), match=message):
        compare(spellings, **options | changes)
    assert not list(tmp_path.rglob("pictures/compare")), "nothing was drawn"


def test_a_damaged_checkpoint_is_named(
    tiny_model: Model, packed: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(packed, tmp_path / "broken")
    path = tmp_path / "broken/unet/diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        EngineError, match=r"^broken: .*diffusion_pytorch_model.* was changed|damaged"
    ):
        compare([reference(tiny_model), str(tmp_path / "broken")], **options)


def test_a_quantized_denoiser_keeps_its_types_between_float32_inputs_and_outputs() -> None:
    layer = nn.Linear(4, 4).to(torch.bfloat16)
    layer.register_buffer("scale", torch.ones(1))
    layer.hf_quantizer = object()  # as diffusers leaves it
    compute_in(layer, torch.bfloat16)
    assert layer.scale.dtype == torch.float32
    assert layer(torch.zeros(1, 4)).dtype == torch.float32


def test_a_pipeline_that_draws_no_pictures_is_named(
    tiny_model: Model, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(*_: Any, **__: Any) -> np.ndarray:
        raise EvaluationError("picture 3 is not finite")

    monkeypatch.setattr(pictures.Drawer, "draw", draw)
    with pytest.raises(EvaluationError, match=r"guidance=2\.0 draws no pictures: .* finite"):
        compare([reference(tiny_model), str(tiny_model.path)], **options)
