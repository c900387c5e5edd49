"""python -m qsdm.trace, on a pipeline on disk."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qsdm import denoisers, run
from qsdm.calibrate import calibrate
from qsdm.denoisers import Model, ModelError, found_model
from qsdm.graph import Graph
from qsdm.trace import trace


def test_graph_is_captured_from_the_pipeline_and_stored(
    tiny_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    graph = trace(tiny_model, tmp_path)
    stored = Graph.from_json(json.loads((tmp_path / "tiny" / "graph.json").read_text()))
    assert stored.digest == graph.digest
    text = next(node for node in graph.nodes if node.name == "input.encoder_hidden_states")
    tokenizer = json.loads((Path(tiny_model.path) / "tokenizer" / "tokenizer_config.json").read_text())
    assert text.activation == (1, tokenizer["model_max_length"], 16)  # which only the pipeline knows
    printed = capsys.readouterr().out
    assert "StableDiffusionPipeline" in printed
    assert "100.0%" in printed


def test_any_pipeline_directory_is_a_model(tiny_model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "my pipeline"
    shutil.copytree(tiny_model.path, folder)
    found = found_model(str(folder))
    assert re.fullmatch(r"my_pipeline-[0-9a-f]{8}", found.name)
    assert (found.denoiser, found.component) == ("UNet2DConditionModel", "unet")
    assert {w.name for w in trace(found, tmp_path).weights} == {w.name for w in trace(tiny_model, tmp_path).weights}


def test_pipelines_of_one_directory_name_have_stores_of_their_own(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("a", "b"):
        shutil.copytree(tiny_model.path, tmp_path / place / "pipe")
    a, b = (found_model(str(tmp_path / place / "pipe")).name for place in ("a", "b"))
    assert a != b  # the same graph, perhaps other weights
    monkeypatch.chdir(tmp_path)
    assert found_model("a/pipe").name == found_model("b/../a/pipe/").name == a  # every command finds it again
    config = tmp_path / "a" / "pipe" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"norm_eps": 1e-3}))
    assert found_model("a/pipe").name != a
    assert found_model("a/pipe", name="mine").name == "mine"


def test_the_command_line_of_the_issue(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model.path, "pipe")
    assert run.execute(calibrate, ["+model=any", "path=pipe"]) == 1
    assert "run python -m qsdm.trace +model=any path=pipe\n" in capsys.readouterr().err
    assert run.execute(trace, ["+model=any", "path=pipe"]) == 0
    assert run.execute(calibrate, ["model=any", "model.path=pipe"]) == 0
    (store,) = Path("store").iterdir()
    assert store.name == found_model("pipe").name
    assert {path.name for path in store.iterdir()} >= {"graph.json", "graph.html", "calibration"}
    for arguments, words in [
        (["path=pipe"], "needs a model: add +model=NAME"),
        (["+model=any"], "model needs a path"),
        (["+model=any", "pth=pipe"], "did you mean 'path'?"),
        (["+model=any", "path=pipe", "model.component=transformer"], "wanted a transformer (got feature_extractor"),
    ]:
        assert run.execute(trace, arguments) == 1
        assert words in capsys.readouterr().err


def test_parameter_count_is_checked(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="parameters, not 17"):
        trace(replace(tiny_model, num_params=17), tmp_path)


def test_what_is_no_pipeline_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no model_index"):
        found_model(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"]}')
    with pytest.raises(ModelError, match=r"wanted a unet or a transformer \(got vae\)"):
        found_model(str(tmp_path))
    with pytest.raises(ModelError, match="no directory 'nowhere'"):
        found_model("nowhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="check the name and the network"):
        found_model("nobody/nothing")


def test_a_wrong_component_is_told(tiny_model: Model) -> None:
    with pytest.raises(ModelError, match=r"has no transformer .* correct model\.component"):
        denoisers.denoiser_config(replace(tiny_model, component="transformer"))


def test_a_quantized_pipeline_on_disk_is_told(tiny_model: Model, tmp_path: Path) -> None:
    shutil.copytree(tiny_model.path, tmp_path / "pipe")
    config = tmp_path / "pipe" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(ModelError, match="already quantized: give path=DIRECTORY"):
        trace(found_model(str(tmp_path / "pipe")), tmp_path)


def test_unknown_class_is_told() -> None:
    model = Model("x", "x/y", "NoSuchDenoiser", "unet", 8, 1, 1.0)
    with pytest.raises(ModelError, match="no class 'NoSuchDenoiser'"):
        denoisers.denoiser_class(model)
