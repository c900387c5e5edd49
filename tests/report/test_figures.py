"""The figures draw what the store holds, and say what is missing."""

from __future__ import annotations

import dataclasses
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from fabricated_store import fabricate

from qsdm.report import figures, results
from qsdm.report.figures.canvas import fit
from qsdm.report.figures.quality import path_of
from qsdm.report.page import FIGURES

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> results.Results:
    return results.read(fabricate(tmp_path_factory.mktemp("store")))


def tips(figure) -> list[str]:
    """Tooltips of a figure's marks, in the order in which they are drawn."""
    root = ElementTree.fromstring(figures.svg(figure, "test"))
    return [element.text for element in root.iter(f"{SVG}title")]


@pytest.mark.parametrize(
    ("draw", "field", "command"),
    [
        (figures.front, "front", "search"),
        (figures.search, "front", "search"),
        (figures.rounds, "front", "search"),
        (figures.measured, "summary", "realize"),
        (figures.mix, "chosen", "realize"),
        (figures.sensitivity, "sensitivity", "attribute"),
        (figures.heat, "sensitivity", "attribute"),
        (figures.interventions, "sensitivity", "attribute"),
        (figures.certificate, "certificate", "attribute"),
        (figures.predictor, "predictor", "train"),
        (figures.bits, "outcomes", "measure"),
        (figures.pictures, "pictures", "realize"),
    ],
)
def test_figure_is_drawn_or_names_the_command_that_is_missing(whole, draw, field, command):
    assert len(figures.png(draw(whole))) > 5_000
    empty = {"pictures": {}, "outcomes": ()}.get(field)
    with pytest.raises(results.NotRun, match=f"qsdm.{command} "):
        draw(dataclasses.replace(whole, **{field: empty}))


def test_front_draws_every_measured_row(whole):
    measured = figures.front(whole).axes[1]
    shown = [len(dots.get_offsets()) for dots in measured.collections]
    assert shown == [1, 6, 5]  # ours, uniform, random
    assert len(measured.lines) == 1  # full precision


def test_the_path_of_a_baseline_is_its_best_quality_by_bits():
    found = ((3.0, -9.0), (4.0, -5.0), (3.4, -6.0), (3.2, -4.0))
    points = [{"avg_bits": bits, "predicted": quality} for bits, quality in found]
    bits, quality = path_of(points)
    assert bits.tolist() == [3.0, 3.2, 3.4, 4.0]
    assert quality.tolist() == [-9.0, -4.0, -4.0, -4.0]


def test_every_mark_that_a_reader_would_point_at_has_a_tip(whole):
    rows = [row for row in whole.summary["rows"] if row["name"] != "fp"]
    assert sorted(tip.split(":")[0] for tip in tips(figures.measured(whole))) == sorted(
        row["name"] for row in rows
    )
    search = tips(figures.search(whole))
    points, uniform = whole.front["points"], whole.front["baselines"]["uniform"]["points"]
    assert sum(tip.startswith("front: ") for tip in search) == len(points)
    assert sum(tip.startswith("measured: ") for tip in search) == len(whole.outcomes)
    assert sum(tip.startswith("uniform: ") for tip in search) == len(uniform)
    assert sum(tip.startswith("candidate: ") for tip in search) == 1
    in_rounds = [text for text in tips(figures.rounds(whole)) if text.startswith("round ")]
    assert [text.split(":")[0] for text in in_rounds] == ["round 1", "round 1", "round 2"]
    assert len(tips(figures.bits(whole))) == 24
    assert len(tips(figures.predictor(whole))) == 5
    assert len(tips(figures.interventions(whole))) == len(whole.sensitivity["interventions"])
    by_op = [row["name"] for row in whole.sensitivity["tables"]["op"]]
    for name in by_op:
        assert sum(tip.startswith(f"{name}") for tip in tips(figures.sensitivity(whole, ["op"])))
    assert len(tips(figures.weights(whole.graph))) > 10
    along = tips(figures.certificate(whole))  # random orders in both directions, others in one
    assert sum(tip.startswith("attribution, ") for tip in along) == 2 * 3
    assert sum(tip.startswith("random, 28 weights restored: harm 40") for tip in along) == 2


def test_a_narrow_certificate_has_one_direction_above_the_other(whole):
    wide, narrow = (figures.certificate(whole, width) for width in (10.0, 3.6))
    assert [len({round(axes.get_position().y0, 1) for axes in f.axes}) for f in (wide, narrow)] == [
        1,
        2,
    ]
    names = [node.name for node in whole.graph.nodes]
    assert sorted(tips(figures.graph(whole.graph))) == sorted(names)


def test_heat_leaves_out_what_is_not_on_offer(whole):
    names, methods, values = results.matrix(whole.sensitivity)
    present = {
        f"{name}, {method}: {value:.4g}"
        for name, row in zip(names, values, strict=True)
        for method, value in zip(methods, row, strict=True)
        if value is not None
    }
    assert len(present) < len(names) * len(methods)
    assert set(tips(figures.heat(whole))) == present


def test_heat_keeps_the_most_sensitive_weights(whole):
    names, _, values = results.matrix(whole.sensitivity)
    mean = [np.mean([value for value in row if value is not None]) for row in values]
    most = {names[i] for i in np.argsort(mean)[-5:]}
    assert {tip.split(",")[0] for tip in tips(figures.heat(whole, most=5))} == most


def test_graph_and_weights_name_every_op_role_and_block(whole):
    ops = {text.get_text() for text in figures.graph(whole.graph).axes[0].get_legend().get_texts()}
    assert ops == {str(node.op) for node in whole.graph.nodes}
    by_role = {text.get_text() for text in figures.weights(whole.graph).axes[0].get_yticklabels()}
    assert by_role == {str(node.role) for node in whole.graph.nodes if node.weight is not None}


def test_largest_weights_come_first(whole):
    sizes = results.largest(whole.graph, 5)["values"].tolist()
    assert sizes == sorted((weight.numel for weight in whole.graph.weights), reverse=True)[:5]


def test_bars_are_sorted_and_limited(whole):
    harms = [entry["value"] for entry in results.harms(whole.sensitivity, "role", most=3)]
    assert harms == sorted(harms, reverse=True)
    assert len(harms) == 3


def test_bars_say_how_many_groups_are_left_out(whole):
    rows = [dict(row) for row in whole.sensitivity["tables"]["block"]]
    many = [dict(row, name=f"{row['name']}.{i}") for i in range(4) for row in rows]
    tables = {**whole.sensitivity["tables"], "block": many}
    more = dataclasses.replace(whole, sensitivity={**whole.sensitivity, "tables": tables})
    text = figures.sensitivity(more, ["block"]).axes[0].get_title(loc="right")
    assert text == f"{len(many) - 24} less harmful ones not shown"


def test_shares_of_a_block_sum_to_the_whole(whole):
    bars = figures.mix(whole).axes[0].patches
    ends: dict[float, float] = {}
    for bar in bars:
        ends[bar.get_y()] = ends.get(bar.get_y(), 0.0) + bar.get_width()
    assert list(ends.values()) == pytest.approx([100.0] * len(ends))
    assert len(ends) == len({block for block, _ in results.parts_of_blocks(whole).values()})


def test_slices_that_a_space_merges_are_one_part(whole):
    node = next(node for node in whole.graph.nodes if node.weight is not None)
    halves = [
        dataclasses.replace(
            node, name=f"w#{k}", weight=dataclasses.replace(node.weight, name=f"w#{k}")
        )
        for k in range(2)
    ]
    graph = dataclasses.replace(whole.graph, nodes=tuple(halves), edges=())
    merged = dataclasses.replace(whole, graph=graph, chosen={"w": "uaq-4"})
    assert results.parts_of_blocks(merged) == {"w": (node.block, 2 * node.weight.numel)}
    apart = dataclasses.replace(merged, chosen={"w#0": "uaq-4", "w#1": "uaq-3"})
    assert list(results.parts_of_blocks(apart)) == ["w#0", "w#1"]


def test_long_names_are_cut_in_the_middle_and_stay_apart():
    names = [f"up_blocks.{i}.attentions.0.transformer_blocks.0" for i in range(3)]
    short = fit(names, width=2.0)
    assert len(set(short)) == 3
    assert all(text.startswith("up_b") and "…" in text for text in short)
    assert fit(names, width=40.0) == names


@pytest.mark.parametrize("name", FIGURES)
def test_svg_takes_its_ink_from_the_page_and_holds_text(whole, name):
    draw, width = FIGURES[name]
    text = figures.svg(draw(whole, width), name)
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img"
    assert "currentColor" in text
    assert any(element.text for element in root.iter(f"{SVG}text"))
    assert not set(root.iter(f"{SVG}style")) | set(root.iter(f"{SVG}image"))
    black = re.findall(r"(?:fill|stroke): (?:#000000|black)", text)
    assert black == []
