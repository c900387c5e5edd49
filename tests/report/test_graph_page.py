"""The page of a graph: complete, self-contained, and alive in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qsdm.graph import Graph, Node, Op, Role, Weight
from qsdm.report import graph_page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def chain(num_blocks: int = 4) -> Graph:
    """A denoiser of one stage, in blocks of a linear, a norm and an add."""
    nodes = [Node("input.sample", Op.INPUT, activation=(1, 4, 8))]
    edges = []
    for b in range(num_blocks):
        where = {
            "stage": "layers",
            "block": f"layers.{b}",
            "activation": (1, 4, 8),
            "depth": (b + 1) / (num_blocks + 2),
        }
        weight = Weight(f"layers.{b}.proj", f"layers.{b}.proj.weight", (8, 8))
        last = len(nodes) - 1
        nodes += [
            Node(f"layers.{b}.norm", Op.NORM, **where),
            Node(weight.name, Op.LINEAR, Role.FF_OUT, weight=weight, macs=256, **where),
            Node(f"layers.{b}.add", Op.ADD, **where),
        ]
        edges += [(last, last + 1), (last + 1, last + 2), (last + 2, last + 3), (last, last + 3)]
    nodes.append(Node("output", Op.OUTPUT, activation=(1, 4, 8), depth=1.0))
    return Graph("chain </script>", tuple(nodes), (*edges, (len(nodes) - 2, len(nodes) - 1)))


def embedded(page: str) -> dict:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


def test_every_node_and_edge_is_in_the_page() -> None:
    graph = chain()
    data = embedded(graph_page.render(graph))
    assert [entry["n"] for entry in data["nodes"]] == [node.name for node in graph.nodes]
    assert data["edges"] == [list(edge) for edge in graph.edges]
    assert data["label"] is None


def test_values_reach_their_nodes() -> None:
    data = embedded(graph_page.render(chain(), {"layers.1.proj": 0.25}, "error"))
    assert {entry["n"]: entry["v"] for entry in data["nodes"] if "v" in entry} == {"layers.1.proj": 0.25}
    assert data["label"] == "error"
    with pytest.raises(ValueError, match="no weight 'nothing'"):
        graph_page.render(chain(), {"nothing": 1.0})


def test_the_page_loads_nothing_and_no_name_breaks_out_of_it() -> None:
    page = graph_page.render(chain())
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page)
    assert "http" not in page
    assert page.count("</script>") == 2


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize("fragment", ["", "#blocks", "#everything"])
def test_the_page_runs_in_a_browser(tmp_path: Path, fragment: str) -> None:
    graph_page.write(tmp_path / "graph.html", chain(60))
    command = [
        str(CHROMIUM),
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=3000"),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        f"file://{tmp_path / 'graph.html'}{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert "linear  60" in done.stdout  # the legend is drawn by the script, after layout
