"""Embedding tables as weights: traced, calibrated, drawn with, packed. Text encoders that tie."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import t5
from tiny import CAPTIONS

from qsdm import tracing
from qsdm.calibrate import calibrate
from qsdm.checkpoint import dequantized, load_quantized, save_denoiser, save_quantized
from qsdm.denoisers import Model, load_pipeline, with_component
from qsdm.graph import Graph, Role
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.inputs import by_role
from qsdm.measurement.moments import NUM_DRAWN, importances
from qsdm.qconfig import QuantConfig, QuantMethod, SpaceSpec, cost, input_bits
from qsdm.quant.calibrated import PackedWeights
from qsdm.quant.packed import PackedEmbedding
from qsdm.quant.packed_model import pack
from qsdm.trace import trace
from qsdm.tracing.tables import with_tables
from qsdm.workspace import Workspace

TABLE = "embeddings.token_embedding"
METHODS = ["uaq_w-3", "uaq_w-8"]
IDS = {
    "input_ids": torch.arange(24)[None] % 20,
    "attention_mask": torch.ones(1, 24, dtype=torch.long),
}


def test_embeddings_get_methods_and_fits_that_know_inputs(
    tiny_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"embeddings=true is for tables .* \(got unet, without"):
        trace(Workspace(tiny_model, root=tmp_path), embeddings=True)
    model = with_component(tiny_model, "text_encoder")
    space = SpaceSpec("small", METHODS, max_overhead=99)
    workspace = Workspace(model, space, tmp_path)
    graph = trace(workspace, page=False, embeddings=True)
    assert "embeddings   embeddings.position_embedding: " in capsys.readouterr().out
    assert graph.node_of(TABLE).role == Role.EMBED_IN
    assert len(graph.weights) == 1 + len(trace(Workspace(model, root=tmp_path / "b")).weights)

    drawer = Drawer(model, graph, None, 4)
    drawn: list[int] = []
    draw = drawer.draw
    drawer.draw = lambda qconfig, some, *rest: (  # type: ignore[method-assign]
        drawn.extend(one.number for one in some) or draw(qconfig, some, *rest)
    )
    recorded = importances(drawer, CAPTIONS)
    assert len(drawn) == NUM_DRAWN  # each picture calls an encoder once
    assert recorded.keys() == {weight.name for weight in graph.weights} - {TABLE}
    assert min(values.min() for values in recorded.values()) >= 0
    rounded = QuantConfig(model.name, {}, 8)
    assert f"{TABLE}.weight" not in input_bits(graph, rounded)
    assert TABLE not in {name for names in by_role(graph).values() for name in names}

    calibrate(workspace)
    packed = PackedWeights(workspace.packed)
    three, eight = map(QuantMethod.parse, METHODS)
    drawings = [Drawing(i, CAPTIONS[i], i) for i in range(2)]
    drawer = Drawer(model, graph, packed, 2)
    full, only_table, low = (
        drawer.draw(QuantConfig(model.name, methods), drawings)
        for methods in ({}, {TABLE: three}, dict.fromkeys(recorded, three) | {TABLE: eight})
    )
    assert (full != only_table).any()
    qconfig = QuantConfig(model.name, dict.fromkeys(recorded, three) | {TABLE: eight})
    written = save_quantized(
        load_pipeline(model), "text_encoder", graph, qconfig, tmp_path / "c", packed.quantized
    )
    assert written.packed_bytes == cost.size_bytes(graph, qconfig)
    loaded = load_quantized(tmp_path / "c")
    assert isinstance(loaded.text_encoder.get_submodule(TABLE), PackedEmbedding)
    again = Drawer(model, graph, None, 2, loaded).draw(QuantConfig(model.name, {}), drawings)
    assert np.abs(again.astype(int) - low).max() <= 1


def t5_with_graph() -> tuple[torch.nn.Module, Graph]:
    module = t5()[1].eval()
    return module, tracing.trace(module, IDS, "t5")


@pytest.mark.parametrize("embeddings", [False, True])
def test_a_t5_whose_table_has_two_names_is_packed(embeddings: bool, tmp_path: Path) -> None:
    module, graph = t5_with_graph()
    if embeddings:
        graph = with_tables(graph, module)
        assert graph.weights[0].parameter == "shared.weight"
    qconfig = SpaceSpec("s", ["uaq-8"], max_overhead=99).of(graph).uniform("uaq-8")
    written = save_denoiser(module, graph, qconfig, tmp_path)
    assert written.packed_bytes == cost.size_bytes(graph, qconfig)
    assert ("shared.weight" in written.plain) != embeddings
    loaded = load_quantized(tmp_path)
    with torch.inference_mode():
        wanted = pack(copy.deepcopy(module), graph, qconfig)(**IDS)[0]
        assert torch.equal(loaded(**IDS)[0], wanted)
        assert torch.equal(dequantized(loaded)(**IDS)[0], wanted)
    if not embeddings:
        assert loaded.shared.weight is loaded.encoder.embed_tokens.weight
