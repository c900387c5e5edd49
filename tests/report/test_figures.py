"""The figures draw what the store holds, and say what is missing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fabricated_store import fabricate

from qsdm.report import charts, figures, results


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> results.Results:
    return results.read(fabricate(tmp_path_factory.mktemp("store")))


@pytest.mark.parametrize(
    ("draw", "field", "command"),
    [
        (figures.front, "front", "search"),
        (figures.sensitivity, "sensitivity", "attribute"),
        (figures.heat, "sensitivity", "attribute"),
        (figures.predictor, "predictor", "train"),
        (figures.pictures, "pictures", "realize"),
    ],
)
def test_figure_is_drawn_or_names_the_command_that_is_missing(
    whole, draw, field, command, tmp_path
):
    made = draw(whole)
    made.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5_000
    with pytest.raises(ValueError, match=f"qsdm.{command} "):
        draw(dataclasses.replace(whole, **{field: {} if field == "pictures" else None}))


def test_front_draws_every_measured_row(whole):
    measured = figures.front(whole).axes[1]
    assert len(measured.collections) == 12  # 6 uniform, 5 random, ours
    assert len(measured.lines) == 1  # full precision


def test_graph_and_weights_name_every_op_role_and_block(whole):
    ops = {text.get_text() for text in figures.graph(whole.graph).axes[0].get_legend().get_texts()}
    assert ops == {str(node.op) for node in whole.graph.nodes}
    by_role = {text.get_text() for text in figures.weights(whole.graph).axes[0].get_yticklabels()}
    assert by_role == {str(node.role) for node in whole.graph.nodes if node.weight is not None}


def test_largest_weights_come_first(whole):
    sizes = results.largest(whole.graph, 5)["values"].tolist()
    assert sizes == sorted((weight.numel for weight in whole.graph.weights), reverse=True)[:5]


def test_heat_leaves_out_what_is_not_on_offer(whole):
    names, methods, values = results.matrix(whole.sensitivity)
    missing = [
        (i, j) for i, row in enumerate(values) for j, value in enumerate(row) if value is None
    ]
    assert missing
    shown = charts.heat(names, methods, values, "harm")["data"][0]["z"]
    assert all(shown[j][i] is None for i, j in missing)
    assert sum(value is None for row in shown for value in row) == len(missing)


def test_bars_are_sorted_and_limited(whole):
    found = [entry["value"] for entry in results.harms(whole.sensitivity, "role", most=3)]
    assert found == sorted(found, reverse=True)
    assert len(found) == 3


def test_shares_of_a_block_sum_to_the_whole(whole):
    from qsdm.report.page import blocks

    made = charts.mix(whole.chosen, blocks(whole))
    total = np.sum([trace["x"] for trace in made["data"]], axis=0)
    assert total == pytest.approx(np.full(len(total), 100.0))


def test_charts_without_data_are_none():
    assert charts.measured([], "fid") is None
    assert charts.search(None) is None
    assert charts.bars([], "") is None
    assert charts.heat([], [], [], "") is None
    assert charts.bits([]) is None
    assert charts.interventions([]) is None
    assert charts.mix(None, {}) is None
