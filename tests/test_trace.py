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
from qsdm.denoisers import Model, ModelError, discover
from qsdm.graph import Graph
from qsdm.predictor.pyg import read_pyg
from qsdm.qconfig import QuantConfig, QuantMethod, SpaceSpec, cost
from qsdm.trace import trace
from qsdm.workspace import Workspace


def test_graph_is_captured_from_the_pipeline_and_stored(
    tiny_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    graph = trace(Workspace(tiny_model, root=tmp_path))
    stored = Graph.from_json(json.loads((tmp_path / "tiny" / "graph.json").read_text()))
    assert stored.digest == graph.digest
    text = next(node for node in graph.nodes if node.name == "input.encoder_hidden_states")
    tokenizer = json.loads(
        (Path(tiny_model.path) / "tokenizer" / "tokenizer_config.json").read_text()
    )
    assert text.activation == (
        1,
        tokenizer["model_max_length"],
        16,
    )  # which only the pipeline knows
    printed = capsys.readouterr().out
    assert "StableDiffusionPipeline" in printed
    assert "100.0%" in printed
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines()[1:]}
    uniform = QuantConfig(
        "tiny", dict.fromkeys((w.name for w in graph.weights), QuantMethod("uaq", 4))
    )
    assert rows["costs"] == ["avg_bits", "bytes", "read", "a", "step", "peak", "TBOP"]
    assert rows["fp-16"][:2] == ["16.0000", f"{2 * graph.num_values:,}"]
    assert rows["uaq-4"][:2] == [
        f"{cost.avg_bits(graph, uniform):.4f}",
        f"{cost.size_bytes(graph, uniform):,}",
    ]


def test_a_graph_is_exported(tiny_model: Model, tmp_path: Path) -> None:
    import networkx

    graph = trace(Workspace(tiny_model, root=tmp_path), export=["graphml", "pyg"])
    read = networkx.read_graphml(tmp_path / "tiny" / "graph.graphml")
    assert set(read.edges) == {(graph.nodes[a].name, graph.nodes[b].name) for a, b in graph.edges}
    data = read_pyg(tmp_path / "tiny" / "graph.pyg.safetensors")
    assert (data.name, data.weight) == (
        [n.name for n in graph.nodes],
        [w.name for w in graph.weights],
    )
    assert (
        run.execute(trace, ["+model=emoji_unet", f"store={tmp_path}", "export=pyg", "page=false"])
        == 0
    )
    assert {path.name for path in (tmp_path / "emoji_unet").iterdir()} == {
        "graph.json",
        "graph.pyg.safetensors",
    }
    with pytest.raises(ValueError, match="export takes graphml or pyg"):
        trace(Workspace(tiny_model, root=tmp_path), export=["graphml", "dot"])


def test_the_page_shows_the_errors_of_a_calibration(tiny_model: Model, tmp_path: Path) -> None:
    trace(Workspace(tiny_model, root=tmp_path))
    page = tmp_path / "tiny" / "graph.html"
    assert '"labels":[]' in page.read_text()
    calibrate(
        Workspace(tiny_model, SpaceSpec("small", ["uaq-3", "uaq-4"], max_overhead=99), tmp_path)
    )
    calibrated = page.read_text()
    assert '"labels":["error of uaq-3","error of uaq-4"]' in calibrated
    trace(Workspace(tiny_model, root=tmp_path))
    assert page.read_text() == calibrated


def test_any_pipeline_directory_is_a_model(tiny_model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "my pipeline"
    shutil.copytree(tiny_model.path, folder)
    model = discover(str(folder))
    assert re.fullmatch(r"my_pipeline-[0-9a-f]{8}", model.name)
    assert (model.denoiser, model.component) == ("UNet2DConditionModel", "unet")
    assert {w.name for w in trace(Workspace(model, root=tmp_path)).weights} == {
        w.name for w in trace(Workspace(tiny_model, root=tmp_path)).weights
    }


def test_pipelines_of_one_directory_name_have_stores_of_their_own(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("a", "b"):
        shutil.copytree(tiny_model.path, tmp_path / place / "pipe")
    a, b = (discover(str(tmp_path / place / "pipe")).name for place in ("a", "b"))
    assert a != b  # the same graph, perhaps other weights
    monkeypatch.chdir(tmp_path)
    assert (
        discover("a/pipe").name == discover("b/../a/pipe/").name == a
    )  # every command finds it again
    config = tmp_path / "a" / "pipe" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"norm_eps": 1e-3}))
    assert discover("a/pipe").name != a
    assert discover("a/pipe", name="mine").name == "mine"


def test_the_command_line_of_the_issue(
    tiny_model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model.path, "pipe")
    assert run.execute(calibrate, ["+model=any", "path=pipe"]) == 1
    assert "run python -m qsdm.trace +model=any path=pipe\n" in capsys.readouterr().err
    assert run.execute(trace, ["+model=any", "path=pipe"]) == 0
    assert run.execute(calibrate, ["model=any", "model.path=pipe"]) == 0
    (store,) = Path("store").iterdir()
    assert store.name == discover("pipe").name
    assert {path.name for path in store.iterdir()} >= {"graph.json", "graph.html", "calibration"}
    for arguments, words in [
        (["path=pipe"], "needs a model: add +model=NAME"),
        (["+model=any"], "model needs a path"),
        (["+model=any", "pth=pipe"], "did you mean 'path'?"),
        (
            ["+model=any", "path=pipe", "model.component=transformer"],
            "the pipeline 'pipe' has no transformer (wanted one of text_encoder, unet, vae)",
        ),
    ]:
        assert run.execute(trace, arguments) == 1
        assert words in capsys.readouterr().err


def test_parameter_count_is_checked(tiny_model: Model, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="parameters, not 17"):
        trace(Workspace(replace(tiny_model, num_params=17), root=tmp_path))


def test_what_is_no_pipeline_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no model_index"):
        discover(str(tmp_path))
    (tmp_path / "model_index.json").write_text(
        '{"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"]}'
    )
    with pytest.raises(ModelError, match=r"wanted a unet or a transformer \(got vae\)"):
        discover(str(tmp_path))
    with pytest.raises(ModelError, match="no file or directory 'nowhere'"):
        discover("nowhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="check the name and the network"):
        discover("nobody/nothing")


def test_a_wrong_component_is_told(tiny_model: Model) -> None:
    with pytest.raises(ModelError, match=r"has no transformer .* correct model\.component"):
        denoisers.denoiser_config(replace(tiny_model, component="transformer"))


def test_a_quantized_pipeline_on_disk_is_told(tiny_model: Model, tmp_path: Path) -> None:
    shutil.copytree(tiny_model.path, tmp_path / "pipe")
    config = tmp_path / "pipe" / "unet" / "config.json"
    config.write_text(
        json.dumps(
            json.loads(config.read_text()) | {"quantization_config": {"quant_method": "torchao"}}
        )
    )
    with pytest.raises(ModelError, match="already quantized: give path=DIRECTORY"):
        trace(Workspace(discover(str(tmp_path / "pipe")), root=tmp_path))


def test_unknown_class_is_told() -> None:
    model = Model("x", "x/y", "NoSuchDenoiser", "unet", 8, 1, 1.0)
    with pytest.raises(ModelError, match="no class 'NoSuchDenoiser'"):
        denoisers.denoiser_class(model)
