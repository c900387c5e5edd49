"""The page: complete, honest, self-contained, and quiet in a browser."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fabricated_store import fabricate
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qsdm.graph import union
from qsdm.metrics import description
from qsdm.qconfig import QuantConfig, QuantMethod, cost
from qsdm.report import page, results, sections, summary
from qsdm.report.parts import parts
from qsdm.run.conf import CONF
from qsdm.store import Store

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SECTIONS = (
    "Pictures",
    "Measured",
    "Search",
    "Rounds",
    "What was chosen",
    "Sensitivity",
    "Predictor and labels",
    "How it was made",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return fabricate(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def whole(store: Store) -> results.Results:
    return results.read(store)


@pytest.fixture(scope="module")
def text(whole: results.Results) -> str:
    return page.render(whole)


def sketch(_: object, name: str) -> str:
    """In place of a figure where a test looks at the text of the page."""
    return f'<svg aria-label="{name}"></svg>'


class Reader(html.parser.HTMLParser):
    """Headings, table cells, and whatever a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.heads: list[str] = []
        self.cells: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        self.loaded += [
            value
            for name, value in attrs
            if name in ("src", "href", "xlink:href", "srcset", "data") and value
        ]
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.tags.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside in ("h1", "h2"):
            self.heads.append(data)
        elif self._inside == "td":
            self.cells[-1] += data
        elif self._inside == "style":
            self.loaded += re.findall(r"url\(([^)]*)\)|@import\s+(\S+)", data)


def changed(whole: results.Results, **metrics_of_ours: float) -> results.Results:
    """The same results with another outcome of ours."""
    assert whole.summary is not None
    rows = [
        {**row, "metrics": row["metrics"] | metrics_of_ours} if row["name"] == "ours" else row
        for row in whole.summary["rows"]
    ]
    return dataclasses.replace(whole, summary={**whole.summary, "rows": rows})


def test_all_sections_are_there(text):
    reader = Reader(text)
    assert [head for head in reader.heads if head in SECTIONS] == list(SECTIONS)


def test_every_measured_row_is_in_the_table(whole, text):
    cells = Reader(text).cells
    for row in whole.summary["rows"]:
        assert f"{row['size_bytes']:,}" in cells
        assert f"{row['metrics']['fd_lite0']:.1f}" in cells


def test_every_round_is_in_the_table(text):
    cells = Reader(text).cells
    assert {"512", "+5.0 ± 1.0", "256", "+3.0", "+10.0 ± 2.5"} <= set(cells)


def test_what_a_gain_is_of_is_said(whole):
    assert "measured front, " in sections.rounds_hint({**whole.front, "fidelity": None})
    together = sections.rounds_hint({**whole.front, "fidelity": "psnr"})
    assert "measured front of quality and psnr together, " in together


def test_the_heading_tells_paired_differences(whole):
    assert "paired" not in summary.sentence(whole.summary)
    away = {"kmeans_c-3": [40.0, 2.5], "uaq-3": [40.0, 2.5], "kmeans_a-3": [40.0, 2.5]}
    told = {name: {"fd_lite0": pair} for name, pair in (away | {"random": [12.5, None]}).items()}
    text = summary.sentence({**whole.summary, "differences": told})
    assert text.count("; paired difference +40 ± 2.5)") == 1  # the random ones have no halves


def test_agreement_with_probes_that_were_learned_from_is_no_proof(whole):
    scores = whole.predictor["scores"]
    without = {"scores": {name: row for name, row in scores.items() if name != "probes"}}
    with_probes = {"scores": scores | {"probes": next(iter(scores.values()))}}
    assert "never saw" in sections.alone_hint(whole.sensitivity, without)
    assert "no proof" in sections.alone_hint(whole.sensitivity, with_probes)


def test_causes_are_named_only_where_the_certificate_holds(whole, text):
    cells = Reader(text).cells
    assert {"random", "+15.0 ± 3.9"} <= set(cells)
    assert "The certificate holds: this page says what a layer is kept because of" in text
    broken = {**whole.certificate, "holds": False}
    hint = sections.certificate_hint(dataclasses.replace(whole, certificate=broken))
    assert "does not hold: this page does not say" in hint
    without = sections.certificate_hint(dataclasses.replace(whole, certificate=None))
    assert f"python -m qsdm.attribute +model={whole.denoiser} certificate=true" in without
    assert ("0.85", "rank correlation of the attributions of two folds") in (
        sections.certificate_rule(whole)
    )


def test_a_certificate_of_other_attributions_does_not_count(store, whole):
    from qsdm.report.results import certificate_of

    assert certificate_of(store, "traced", whole.sensitivity) is not None
    sensitivities = whole.sensitivity["sensitivities"]
    gradients = sensitivities["integrated_gradients"]
    scores = [[0.0 if score is None else -score for score in row] for row in gradients["scores"]]
    other = {"sensitivities": {"integrated_gradients": {**gradients, "scores": scores}}}
    assert certificate_of(store, "traced", other) is None


def test_nothing_is_loaded_from_elsewhere(text):
    reader = Reader(text)
    inside = [source for source in reader.loaded if source.startswith("#")]
    pictures = [source for source in reader.loaded if source.startswith("data:image/png;base64,")]
    assert len(pictures) == 4
    assert sorted(inside + pictures + ["data:,"]) == sorted(reader.loaded)
    assert {source[1:] for source in inside} <= set(reader.ids)
    assert "script" not in reader.tags
    assert len(text) < 8_000_000


def test_wide_tables_are_reached_by_the_keyboard(text):
    labels = re.findall(r'class="scroll" tabindex="0" role="region" aria-label="([^"]+)"', text)
    assert len(labels) == text.count('class="scroll"')
    assert {"Measured", "Rounds"} <= set(labels)


def test_ids_of_figures_are_unique_in_the_page(text):
    ids = Reader(text).ids
    assert len(ids) == len(set(ids))


def test_equal_results_make_equal_pages(whole, text):
    assert page.render(whole) == text


@pytest.mark.parametrize(
    ("field", "head"),
    [
        ("pictures", "Pictures"),
        ("summary", "Measured"),
        ("front", "Search"),
        ("chosen", "What was chosen"),
        ("sensitivity", "Sensitivity"),
    ],
)
def test_a_section_without_data_is_left_out(whole, field, head, monkeypatch):
    monkeypatch.setattr(page.figures, "svg", sketch)
    less = dataclasses.replace(whole, **{field: {} if field == "pictures" else None})
    heads = Reader(page.render(less)).heads
    assert head not in heads
    assert "How it was made" in heads


def test_parts_share_the_bytes_of_the_chosen_configuration(whole):
    part = whole.graph
    graph = union("both", {"unet": part, "vae": part}, [("unet", "vae")])
    qconfig = QuantConfig(
        "both",
        {w.name: QuantMethod("uaq", 3 if w.name.startswith("unet.") else 4) for w in graph.weights},
    )
    unet, vae = parts(graph, qconfig, 16)
    assert (unet.name, vae.name) == ("unet", "vae")
    assert unet.size_bytes + vae.size_bytes == cost.size_bytes(graph, qconfig)
    assert unet.full_bytes == vae.full_bytes == 2 * part.num_values
    uniform = QuantConfig(part.denoiser, {w.name: QuantMethod("uaq", 4) for w in part.weights})
    assert vae.avg_bits == cost.avg_bits(part, uniform) > unet.avg_bits + 0.9
    reader = Reader(page.render(dataclasses.replace(whole, parts=(unet, vae))))
    assert "Parts" in reader.heads
    assert f"{vae.size_bytes:,}" in reader.cells
    assert parts(part, uniform, 16) == ()


def test_an_empty_store_makes_a_page_without_sections(tmp_path):
    text = page.render(results.read(Store(tmp_path, "nothing")))
    assert Reader(text).heads == ["nothing: what each layer can bear"]
    assert "<svg" not in text


def test_heading_says_which_way_it_went(whole):
    won, lost = (
        summary.sentence(changed(whole, fd_lite0=1.0).summary),
        summary.sentence(changed(whole, fd_lite0=9e9).summary),
    )
    assert won is not None
    assert lost is not None
    assert "not below" not in won
    assert lost.count("not below") == 2


def test_rival_is_the_best_uniform_row_that_is_not_larger(whole):
    assert whole.summary is not None
    outcome = summary.verdict(whole.summary)
    assert outcome is not None
    ours = next(row for row in whole.summary["rows"] if row["name"] == "ours")
    smaller = [
        row["metrics"]["fd_lite0"]
        for row in whole.summary["rows"]
        if row["name"].startswith(("uaq", "kmeans")) and row["size_bytes"] <= ours["size_bytes"]
    ]
    assert outcome["rival"]["metrics"]["fd_lite0"] == min(smaller)


def test_best_value_is_marked_once_a_metric_and_never_at_full_precision(whole):
    marks = sections.table(changed(whole, fd_lite0=1.0, clip_score=1.0, psnr=99.0))
    assert marks is not None
    marked = [
        (row["kind"], i)
        for row in marks["rows"]
        for i, cell in enumerate(row["cells"])
        if cell["best"]
    ]
    assert marked == [("ours", 3), ("ours", 4), ("ours", 5)]


def test_text_of_the_store_cannot_become_markup(whole):
    assert whole.summary is not None
    evil = "<script>alert(1)</script>"
    rows = [
        *whole.summary["rows"],
        {"name": evil, "avg_bits": 3.0, "size_bytes": 1, "metrics": {"fd_lite0": 1.0}},
    ]
    text = page.render(results.Results(evil, summary={"rows": rows}))
    assert evil not in text
    assert text.count("&lt;script&gt;alert(1)") >= 4  # title, heading, table, and a tip


def test_labels_have_bits_and_quality_of_the_objective(whole):
    assert len(whole.outcomes) == 60, (
        "a test set is no label, nor is a configuration of another space"
    )
    for label in whole.outcomes:
        assert 3 < label["avg_bits"] < 4.6
        assert label["quality"] == -label["metrics"]["fd_lite0"]


@pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: install it to see the page in a browser"
)
@pytest.mark.parametrize("width", [1280, 420])
def test_page_is_quiet_in_a_browser_and_fits_its_width(whole, tmp_path, width):
    page.write(tmp_path / "page.html", whole)
    # A frame has any width; a headless window not less than 500 px. It reports what it saw.
    probe = """<iframe src="page.html" style="width:WIDTHpx;height:900px;border:0"></iframe><script>
    addEventListener("load", () => setTimeout(() => {
      const inside = document.querySelector("iframe").contentDocument;
      const plots = [...inside.querySelectorAll(".plot")];
      const wide = inside.documentElement.scrollWidth > inside.documentElement.clientWidth;
      const seen = (svg) => svg.getBoundingClientRect().width > 300;
      const shown = (plot) => [...plot.querySelectorAll("svg")].filter(seen).length;
      const drawn = plots.filter((plot) => shown(plot) === 1).length;
      const entries = inside.defaultView.performance.getEntriesByType("resource");
      const loaded = entries.filter((entry) => /^http/.test(entry.name)).length;
      const text = `${plots.length} plots, ${drawn} drawn, wide ${wide}, loaded ${loaded}`;
      document.body.textContent = text;
    }, 1500));</script>"""
    (tmp_path / "frame.html").write_text(probe.replace("WIDTH", str(width)))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]
    options += [
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    browser = subprocess.run(
        [
            str(CHROMIUM),
            *options,
            "--window-size=1400,900",
            "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert [line for line in browser.stderr.splitlines() if "CONSOLE" in line] == []
    assert "12 plots, 12 drawn, wide false, loaded 0" in browser.stdout


def test_page_cannot_be_half_written(whole, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(page.figures, "svg", sketch)
    page.write(tmp_path / "deep" / "page.html", whole)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    "path", sorted((CONF / "metrics").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_metric_has_a_label_that_points_to_its_better_side(path: Path) -> None:
    config = OmegaConf.load(path)
    for name in config.keys() - {"defaults"}:
        metric = instantiate(config[name])
        assert metric.name == name
        about = description(metric)
        assert about["label"]
        assert summary.head(name, about).endswith("↑" if metric.larger_is_better else "↓")
        assert sections.number(0.123456, about) == f"{0.123456:.{metric.digits}f}"
