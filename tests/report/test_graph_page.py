"""The page of a graph: complete, self-contained, and alive in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qsdm.graph import Graph, Node, Op, Role, Weight
from qsdm.qconfig import QuantMethod
from qsdm.qconfig.cost import MethodTable
from qsdm.report import graph_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: install it to see the page in a browser"
)


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
    assert data["labels"] == []


def test_values_reach_their_nodes() -> None:
    values = {
        "error": {"layers.1.proj": 0.25},
        "score": {"layers.1.proj": 2 / 3, "layers.2.proj": 0.0},
    }
    data = embedded(graph_page.render(chain(), values))
    by_name = {
        entry["n"]: entry["v"]
        for entry in data["nodes"]
        if any(v is not None for v in entry.get("v", ()))
    }
    assert by_name == {"layers.1.proj": [0.25, 0.6667], "layers.2.proj": [None, 0.0]}
    assert data["labels"] == ["error", "score"]
    with pytest.raises(ValueError, match="no weight 'nothing'"):
        graph_page.render(chain(), {"error": {"nothing": 1.0}})


def test_errors_of_a_calibration_are_values() -> None:
    """A method not on offer has none; the slices of a weight share the error of the whole."""
    halves = [Weight(f"b#{k}", "b.weight", (4, 4), start=4 * k) for k in (0, 1)]
    weights = [Weight("a", "a.weight", (4, 4)), *halves, Weight("c", "c.weight", (4, 4))]
    graph = Graph("toy", tuple(Node(w.name, Op.LINEAR, weight=w) for w in weights), ())
    methods = (QuantMethod("uaq", 3), QuantMethod("uaq", 4))
    table = MethodTable(
        ("a", "b"), methods, np.array([[0.1, 0.05], [0.2, np.nan]]), np.ones((2, 2), dtype=np.int64)
    )
    assert graph_page.errors(graph, table) == {
        "error of uaq-3": {"a": 0.1, "b#0": 0.2, "b#1": 0.2},
        "error of uaq-4": {"a": 0.05},
    }


def test_the_page_loads_nothing_and_no_name_breaks_out_of_it() -> None:
    page = graph_page.render(chain())
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:)", page)
    assert "http" not in page
    assert page.count("</script>") == 2


def browse(page: Path, fragment: str = "", *flags: str) -> str:
    """The page's HTML after its scripts have run in Chromium, with nothing in the console."""
    command = [
        str(CHROMIUM),
        *(
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--enable-logging=stderr",
        ),
        *("--virtual-time-budget=3000", f"--user-data-dir={page.parent / 'profile'}"),
        *(flags or ("--dump-dom",)),
        f"file://{page}{fragment}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line], done.stderr
    return done.stdout


@browser
@pytest.mark.parametrize("fragment", ["", "#open=blocks", "#open=everything"])
def test_the_page_runs_in_a_browser(tmp_path: Path, fragment: str) -> None:
    graph_page.write(tmp_path / "graph.html", chain(60))
    assert "linear <span>60</span>" in browse(
        tmp_path / "graph.html", fragment
    )  # drawn by the script, after layout


@browser
def test_search_click_fold_and_keys(tmp_path: Path) -> None:
    """What hands do, done by a script at the end of the page."""
    probe = """<script>
    const lines = [], say = (...words) => lines.push(words.join(" ")), $box = $("details");
    const key = k => dispatchEvent(new KeyboardEvent("keydown", { key: k }));
    const clickOn = u => {
      const r = canvas.getBoundingClientRect(), y = u.frame ? u.y - u.h / 2 + 12 : u.y;
      const clientX = r.left + u.x * view.k + view.x, clientY = r.top + y * view.k + view.y;
      for (const kind of ["pointerdown", "pointerup"])
        canvas.dispatchEvent(new PointerEvent(kind, { clientX, clientY }));
    };
    canvas.setPointerCapture = () => {};
    say("units", units.length, "frames", frames.length);
    const group = units.find(u => u.group); centre(group); picked = null;
    clickOn(group); say("picked", $box.querySelector("h2").textContent, $box.hidden);
    clickOn(group); say("unfolded", frames.length, units.length);
    clickOn(frames[0]); say("folded", frames.length, units.length);
    search.value = "proj ff_out"; search.oninput(); say("found", $("count").textContent);
    step(1); step(1); say("second", $("count").textContent, $box.querySelector("h2").textContent);
    key("ArrowUp"); say("up", $box.querySelector("h2").textContent);
    key("Escape"); say("closed", $box.hidden);
    select.value = "score"; select.onchange(); say("ramp", $("legend").textContent, location.hash);
    const dim = () => units.filter(u => u.dim).length, before = dim();
    search.value = ""; search.oninput(); say("dim", before > 0, dim());
    unfold(Infinity); rebuild(); fit(true); draw(); say("all", units.length, frames.length);
    const near = (u, v, w, h) => Math.abs(u.x - v.x) < w && Math.abs(u.y - v.y) < h;
    say("overlaps", units.filter((u, i) => units.some((v, j) => j > i && near(u, v, W, H))).length);
    const inside = (u, p) => !p.group || near(u, p, p.w / 2, p.h / 2);
    say("inside", units.every(u => inside(u, u.parent)));
    document.title = lines.join("; ");
    </script>"""
    values = {"score": {f"layers.{b}.proj": 10.0 ** (b % 3) for b in range(60)}}
    page = graph_page.render(chain(60), values)
    (tmp_path / "graph.html").write_text(page.replace("</body>", probe + "</body>"))
    page_title = re.search(r"<title>(.*?)</title>", browse(tmp_path / "graph.html", "#color=op"))
    assert page_title is not None
    assert page_title[1].split("; ") == [
        "units 3 frames 0",  # 182 nodes in one stage, between input and output
        "picked layers false",
        "unfolded 1 62",
        "folded 0 3",
        "found 60",
        "second 2 / 60 layers.1.proj",
        "up layers.1.norm",
        "closed true",
        "ramp 1log100 #color=score",
        "dim true 0",
        "all 182 61",
        "overlaps 0",
        "inside true",
    ]


@browser
@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", pytest.param("sdxl", marks=pytest.mark.soak)])
def test_a_published_denoiser_is_drawn(tmp_path: Path, name: str) -> None:
    from PIL import Image

    from tests.tracing.published import traced

    graph = traced(name)[0]
    graph_page.write(tmp_path / "graph.html", graph)
    node = next(node for node in graph.nodes if node.role == Role.ATTN_K)
    page = browse(tmp_path / "graph.html", f"#open=everything&node={node.name}")
    assert f"<h2>{node.name}</h2>" in page
    shot = tmp_path / "page.png"
    browse(
        tmp_path / "graph.html",
        "#open=everything",
        "--window-size=1440,900",
        f"--screenshot={shot}",
    )
    with Image.open(shot) as image:
        assert image.size == (1440, 900)
        colors = image.convert("RGB").getcolors(1 << 24)
    counts = {color: count for count, color in colors}
    for color in (
        (0x4C, 0x7F, 0xE8),
        (0xE2, 0x84, 0x3A),
    ):  # the two most frequent ops, in legend and graph
        assert counts.get(color, 0) > 200
