"""A published recipe is read from headers, scored beside ours, and its changes have intervals."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composed import compose
from safetensors.torch import save_file
from toy_unet import MODEL, SPACE, Explained, Toy

from qsdm.outcome import Objective
from qsdm.predictor.encode import encode
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.recipe import cli
from qsdm.recipes import RecipeError, distance, layers, native
from qsdm.recipes.published import Checkpoint, Tensor, read_checkpoint
from qsdm.run.values import values_of
from qsdm.sensitivity.audit import StandIns
from qsdm.shelf.audit import audit, read_published
from qsdm.store import StoreError
from qsdm.workspace import Workspace

QUALITY = Objective({"fd_lite0": -1})
UAQ4 = QuantMethod("uaq", 4)


@pytest.fixture(scope="module")
def workspace(explained: Explained, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(MODEL, SPACE, explained.copy(tmp_path_factory.mktemp("audit")))


def tensors(toy: Toy) -> dict[str, tuple[int, ...]]:
    return {name: layer.shape for layer in layers(toy.space.graph) for name in layer.parameters}


def write_gguf(path: Path, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> int:
    """Linear layers as Q4_0, all others as F16; bytes of all tensors."""
    gguf = pytest.importorskip("gguf")
    writer, total = gguf.GGUFWriter(path, "toy"), 0
    for name, shape in shapes.items():
        values, kind = np.zeros(shape, dtype=np.float16), gguf.GGMLQuantizationType.F16
        if len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q4_0
            values = gguf.quants.quantize(values.astype(np.float32), kind)
        total += values.nbytes
        writer.add_tensor(prefix + name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def plain(shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """A header without quantized tensors."""
    about = {n: Tensor("f16", None, s, 2 * int(np.prod(s))) for n, s in shapes.items()}
    return Checkpoint("GGUF", "toy", about)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_gguf_file_tells_types_and_bytes(
    workspace: Workspace, toy: Toy, tmp_path: Path, prefix: str
) -> None:
    total = write_gguf(tmp_path / "toy.gguf", tensors(toy), prefix)
    published = read_published(workspace, tmp_path / "toy.gguf", UAQ4)
    assert round(sum(published.size_bytes.values())) == total
    for weight in toy.space.graph.weights:
        linear = len(weight.shape) == 2
        assert published.kinds[weight.name] == ("q4_0" if linear else "f16")
        expected = QuantMethod("uaq_g32", 4) if linear else None
        assert published.qconfig.methods.get(weight.name) == expected
    assert any("q4_0 is taken as uaq_g32-4, without a zero point" in n for n in published.notes)


def test_a_file_of_another_denoiser_is_told_with_its_distance(
    workspace: Workspace, toy: Toy, tmp_path: Path
) -> None:
    graph, path = toy.space.graph, tmp_path / "some.gguf"
    num = len(graph.weights)
    with pytest.raises(
        RecipeError,
        match=rf"GGUF file of the architecture 'toy', not of 'toy_unet': it names 0 of the {num} "
        r"weights \(0%\), and closest to 'double_blocks\.0\.img_mlp\.0' is '",
    ):
        read_checkpoint(graph, plain({"double_blocks.0.img_mlp.0.weight": (64, 64)}), path)
    shapes = tensors(toy)
    name = next(name for name, shape in shapes.items() if len(shape) == 2)
    with pytest.raises(RecipeError, match=rf"has other sizes in 1 of .* {name}, \[96, 160\] there"):
        read_checkpoint(graph, plain(shapes | {name: (96, 160)}), path)
    with pytest.raises(RecipeError, match=r"lacks 1 of the \d+ weights of 'toy_unet'"):
        read_checkpoint(graph, plain({n: s for n, s in shapes.items() if n != name}), path)
    other = QuantConfig("other", {"conv_in": UAQ4, "mid.resnet.0.conv1": UAQ4}).to_json()
    (tmp_path / "other.json").write_text(json.dumps(other))
    with pytest.raises(
        RecipeError,
        match=rf"\(got one of 'other'\): it names 1 of the {num} weights \(\d+%\), and closest to "
        r"'mid\.resnet\.0\.conv1' is 'mid\.resnets\.0\.conv1'",
    ):
        read_published(workspace, tmp_path / "other.json", UAQ4)


def test_what_is_no_gguf_file_is_told(workspace: Workspace, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(10))
    with pytest.raises(RecipeError, match=r"is not a whole GGUF file .*: download it again"):
        read_published(workspace, tmp_path / "broken.gguf", UAQ4)


def test_without_the_package_that_reads_gguf_its_name_is_told(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    with pytest.raises(RecipeError, match="read by the gguf package: pip install gguf"):
        read_published(workspace, tmp_path / "some.gguf", UAQ4)


def comfy(toy: Toy, path: Path, how: str) -> dict[str, str]:
    """Linear layers as 8-bit floats, but time.linear_1 as nvfp4; and the format of each layer."""
    content: dict[str, Any] = {}
    formats: dict[str, str] = {}
    for name, shape in tensors(toy).items():
        layer = name.removesuffix(".weight")
        content[name] = torch.zeros(shape, dtype=torch.bfloat16)
        if len(shape) != 2 or (how == "dtype" and layer == "time.linear_1"):
            continue
        formats[layer] = "nvfp4" if layer == "time.linear_1" else "float8_e4m3fn"
        content[f"{name}_scale"] = torch.zeros(())
        content[name] = torch.zeros(shape).to(torch.float8_e4m3fn)
        if layer == "time.linear_1":
            content[name] = torch.zeros(shape[0], shape[1] // 2, dtype=torch.uint8)
    about = {layer: {"format": kind} for layer, kind in formats.items()}
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": about})}
    if how == "tensors":
        content |= {
            f"{layer}.comfy_quant": torch.tensor(
                list(json.dumps(value).encode()), dtype=torch.uint8
            )
            for layer, value in about.items()
        }
    save_file(content, path, metadata if how == "metadata" else None)
    return formats


@pytest.mark.parametrize("how", ["metadata", "tensors", "dtype"])
def test_comfy_metadata_tells_the_format_of_each_layer(
    workspace: Workspace, toy: Toy, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "toy.safetensors"
    formats = comfy(toy, path, how)
    published = read_published(workspace, path, UAQ4)
    expected = {"float8_e4m3fn": "fp8_e4m3-8", "nvfp4": "nf4_g64-4"}
    methods = {name: str(method) for name, method in published.qconfig.methods.items()}
    assert methods == {layer: expected[kind] for layer, kind in formats.items()}
    first = toy.space.graph.node_of("time.linear_1").weight
    assert first is not None
    bits = 8 * published.size_bytes["time.linear_1"] / first.numel
    assert bits == pytest.approx(16 if how == "dtype" else 4 + 32 / first.numel)


def test_a_format_that_nobody_knows_and_a_file_without_any(
    workspace: Workspace, toy: Toy, tmp_path: Path
) -> None:
    values = {name: torch.zeros(shape) for name, shape in tensors(toy).items()}
    about = {"layers": {"conv_in": {"format": "int1_secret"}}}
    save_file(values, tmp_path / "a.safetensors", {"_quantization_metadata": json.dumps(about)})
    with pytest.raises(RecipeError, match="conv_in has the format 'int1_secret', which no method"):
        read_published(workspace, tmp_path / "a.safetensors", UAQ4)
    save_file(
        values, tmp_path / "b.safetensors", {"_quantization_metadata": '{"layers": {"x": 1}}'}
    )
    with pytest.raises(RecipeError, match=r"wanted a mapping with a format for 'x' \(got 1\)"):
        read_published(workspace, tmp_path / "b.safetensors", UAQ4)
    save_file(values, tmp_path / "c.safetensors")
    with pytest.raises(RecipeError, match=r"says how its weights are quantized: wanted a quantiz"):
        read_published(workspace, tmp_path / "c.safetensors", UAQ4)
    config = {"quantization_config": {"quant_method": "sdnq", "weights_dtype": "uint4"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for path in (tmp_path / "c.safetensors", tmp_path):  # a file beside its config, or the folder
        methods = read_published(workspace, path, UAQ4).qconfig.methods
        assert str(methods["mid.resnets.0.time_emb_proj"]) == "uaq_g64-4"
        assert "conv_in" not in methods  # a Conv, which SDNQ leaves alone


def test_ours_is_better_at_equal_bytes_and_so_is_the_truth(
    workspace: Workspace, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "three.json"
    (tmp_path / "three.json").write_text(
        native.write(toy.space.graph, toy.space.uniform("uaq-3")).text
    )
    content = audit([str(path)], workspace, QUALITY)
    printed = capsys.readouterr().out
    theirs, ours = (QuantConfig.from_json(content[k]["qconfig"]) for k in ("recipe", "ours"))
    assert content["ours"]["size_bytes"] <= content["recipe"]["size_bytes"]
    assert toy.true_fd([ours])[0] < toy.true_fd([theirs])[0]
    gain = content["gain"]
    assert gain["value"] > 1.96 * gain["deviation"] > 0
    assert "ours is predicted to be better by +" in printed
    gains = [change["gain"] for change in content["changes"]]
    assert len(gains) == 10
    assert gains == sorted(gains, reverse=True)
    assert all(change["deviation"] > 0 for change in content["changes"])
    num_changed = len(content["changes"]) + content["rest"]["num"]
    assert num_changed == sum(
        ours.methods.get(name) != method for name, method in theirs.methods.items()
    )
    moved = sum(change["bytes"] for change in content["changes"]) + content["rest"]["bytes"]
    difference = content["ours"]["size_bytes"] - content["recipe"]["size_bytes"]
    assert moved == pytest.approx(difference, abs=num_changed)
    assert json.loads(workspace.path("recipes/three-ours.json").read_text()) == ours.to_json()
    again = workspace.path("recipes/three-ours.json")
    once_more = audit([str(again)], workspace, QUALITY)  # nothing better than ours is known
    assert once_more["gain"]["value"] == pytest.approx(0, abs=0.05 * gain["value"])


def test_a_method_of_another_space_stands_between_those_of_the_space(toy: Toy) -> None:
    stand_ins = StandIns.of(encode(toy.space, toy.table), toy.table)
    methods = stand_ins.encoding.methods
    four, three = methods.index(UAQ4), methods.index(QuantMethod("uaq", 3))
    assert stand_ins.row(0, None)[0].tolist() == np.eye(len(methods) + 1)[-1].tolist()
    assert stand_ins.row(0, UAQ4) == (pytest.approx(np.eye(len(methods) + 1)[four]), "")
    six, sentence = stand_ins.row(0, QuantMethod("uaq", 6))
    assert six[[four, -1]] == pytest.approx([1 / 16, 15 / 16])
    assert sentence == "uaq-6 is scored as 0.062 of the harm of uaq-4"
    two, sentence = stand_ins.row(0, QuantMethod("uaq", 2))
    assert two[three] == 1
    assert sentence == "uaq-2 is scored as uaq-3, which favors the recipe"


def test_without_a_predictor_the_command_that_trains_it_is_named(
    workspace: Workspace, toy: Toy, tmp_path: Path
) -> None:
    for part in ("graph.json", "calibration"):
        (tmp_path / MODEL.name).mkdir(exist_ok=True)
        (tmp_path / MODEL.name / part).symlink_to(workspace.path(part).resolve())
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(StoreError, match=r"run python -m qsdm\.train \+model=toy_unet"):
        audit([str(tmp_path / "list.json")], Workspace(MODEL, SPACE, tmp_path), QUALITY)
    with pytest.raises(StoreError, match=r"no file .*missing\.gguf: give the FILE or folder"):
        read_published(workspace, tmp_path / "missing.gguf", UAQ4)


def test_the_command_line() -> None:
    function, cfg = compose("audit", ["some/file.gguf", "model=emoji_unet"])
    assert values_of(function, cfg)["file"] == ["some/file.gguf"]
    with pytest.raises(SystemExit, match=r"recipe has no 'audti': did you mean 'audit'\?"):
        cli(["audti", "file"])


def test_the_distance_of_the_same_names_names_no_nearest(toy: Toy) -> None:
    names = [weight.name for weight in toy.space.graph.weights]
    assert (
        distance(toy.space.graph, names)
        == f"it names {len(names)} of the {len(names)} weights (100%)"
    )
