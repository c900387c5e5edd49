"""python -m qsdm.trace, on a pipeline on disk."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qsdm import denoisers
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
    assert (found.name, found.denoiser, found.component) == ("my_pipeline", "UNet2DConditionModel", "unet")
    assert {w.name for w in trace(found, tmp_path).weights} == {w.name for w in trace(tiny_model, tmp_path).weights}


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


def test_unknown_class_is_told() -> None:
    model = Model("x", "x/y", "NoSuchDenoiser", "unet", 8, 1, 1.0)
    with pytest.raises(ModelError, match="no class 'NoSuchDenoiser'"):
        denoisers.denoiser_class(model)
