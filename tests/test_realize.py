"""realize: from a front to a measured table, on a tiny pipeline."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from fabricated_store import predictor_report
from PIL import Image

from qsdm.calibrate import calibrate
from qsdm.checkpoint import contents
from qsdm.denoisers import Model
from qsdm.engine.serial import Serial
from qsdm.measurement.bins import Suffering, propose, read_bins
from qsdm.measurement.candidates import Terms, best_points, of_rounds
from qsdm.measurement.intake import Measured
from qsdm.measurement.paired import Difference
from qsdm.measurement.retention import Retaining
from qsdm.measurement.worker import WorkerStart
from qsdm.metrics.fidelity import Psnr
from qsdm.outcome import Objective, Outcome
from qsdm.qconfig import QuantConfig, Space, SpaceSpec, cost
from qsdm.qconfig.steps import bin_name
from qsdm.quant.calibrated import read_table
from qsdm.realize import random_of_size, realize
from qsdm.report.summary import activation_table, step_sentence
from qsdm.store import Store, StoreError, room
from qsdm.store.files import read_json
from qsdm.store.room import NoRoom
from qsdm.store.schemas import (
    CHOSEN_STEPS,
    FRONT,
    REPORT,
    STEPS,
    STEPS_FILE,
    SUMMARY,
    StepRow,
    StepTable,
)
from qsdm.store.tensors import check_tensors
from qsdm.strategies import Problem
from qsdm.strategies.constraints import Constraints
from qsdm.strategies.explorer import search_front
from qsdm.strategies.random import Random, near
from qsdm.trace import trace
from qsdm.workspace import Workspace

SPEC = SpaceSpec("small", ("uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4"))
LIMIT = 3.7
QUALITY = Objective({"fd_lite0": -1})
FEW: dict[str, Any] = {
    "budget": {"avg_bits": LIMIT},
    "candidates": 2,
    "num_images": 4,
    "num_random": 2,
    "activations": [16, 4],
    "batch_size": 4,
    "engine": Serial(),
}


@pytest.fixture(scope="module")
def traced(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    trace(Workspace(tiny_model, root=store))
    calibrate(Workspace(tiny_model, SPEC, store))
    return store


@pytest.fixture(scope="module")
def space(tiny_model: Model, traced: Path) -> Space:
    return SPEC.of(Store(traced, tiny_model.name).graph())


@pytest.fixture(scope="module")
def searched(tiny_model: Model, traced: Path, space: Space) -> Path:
    """A store with a front of random configurations, whose predictions are made up."""
    place = Store(traced, tiny_model.name)
    problem = Problem.of(space, read_table(place.path("calibration/small")))

    def predict(genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return genes.sum(axis=1) / genes.shape[1], np.zeros(len(genes))

    front = search_front(predict, problem, Random(), evaluations=100)
    about = {
        "schema": "qsdm/front/1",
        "denoiser": "tiny",
        "space": "small",
        "objective": {"fd_lite0": -1},
    }
    FRONT.write(place.path("search/small.json"), about | front)
    return traced


@pytest.fixture(scope="module")
def realized(tiny_model: Model, searched: Path) -> Store:
    """With a chosen configuration, its pictures and its checkpoint."""
    store = Store(searched, tiny_model.name)
    summary = realize(Workspace(tiny_model, SPEC, searched), QUALITY, **FEW)
    assert summary == read_json(store.path("summary.json"))
    return store


def test_a_disk_too_small_for_the_checkpoint_is_said_before_anything_is_measured(
    tiny_model: Model, searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Path(shutil.copytree(searched, tmp_path / "store"))
    shutil.rmtree(store / tiny_model.name / "checkpoint", ignore_errors=True)
    monkeypatch.setattr(room, "free_disk", lambda _folder: 1_000)
    monkeypatch.setattr(WorkerStart, "__call__", lambda _start: pytest.fail("a worker started"))
    with pytest.raises(NoRoom, match=r"the checkpoint takes .* of disk, and 1 kB are free"):
        realize(Workspace(tiny_model, SPEC, store), QUALITY, **FEW)


def test_measures_ours_beside_what_it_must_beat(realized: Store) -> None:
    summary = read_json(realized.path("summary.json"))
    rows = {row["name"]: row for row in summary["rows"]}
    assert list(rows) == [
        "fp",
        "kmeans_a-4",
        "uaq-4",
        "kmeans_a-3",
        "uaq-3",
        "random-0",
        "random-1",
        "ours",
    ]
    ours = rows["ours"]
    assert ours["avg_bits"] <= LIMIT
    for name in ("random-0", "random-1"):
        assert rows[name]["size_bytes"] == pytest.approx(ours["size_bytes"], rel=0.01)
    assert rows["fp"]["metrics"]["psnr"] is None
    assert all(row["metrics"]["psnr"] > 0 for name, row in rows.items() if name != "fp")

    # Chosen by the labels' noise, measured on other noise.
    best = min(summary["candidates"], key=lambda row: row["metrics"]["fd_lite0"])
    chosen = QuantConfig.from_json(read_json(realized.path("chosen.json")))
    assert chosen.digest == best["qconfig"] == ours["qconfig"]
    assert len(summary["candidates"]) == 2
    assert ours["metrics"]["fd_lite0"] != best["metrics"]["fd_lite0"]
    assert {protocol.seed_set for protocol in realized.protocols().values()} == {0, 1}

    names = {path.stem for path in realized.path("pictures").glob("*.png")}
    assert names >= {"fp", "ours", "comparison"}
    assert len(names) == 5  # and the best uniform ones of 4 and of 3 bits
    with Image.open(realized.path("pictures/ours.png")) as image:
        assert np.asarray(image).std() > 1
    assert "<html" in realized.path("report.html").read_text(encoding="utf-8")


def test_the_same_weights_are_measured_with_rounded_activations(realized: Store) -> None:
    summary = SUMMARY.read(realized.path("summary.json"))
    table = summary["activations"]
    assert table["bits"] == [16, 4]
    rows = {(row["name"], row["activations"]): row for row in table["rows"]}
    names = list(dict.fromkeys(name for name, _ in rows))
    assert names[0] == "ours"
    assert [name[-1] for name in names[1:]] == ["4", "3"]  # the best uniform one of each width
    plain = {row["name"]: row for row in summary["rows"]}
    for name in names:
        assert rows[name, 16]["metrics"] == plain[name]["metrics"]
        assert rows[name, 4]["metrics"]["psnr"] < rows[name, 16]["metrics"]["psnr"]
        assert rows[name, 4]["tera_bops"] == pytest.approx(rows[name, 16]["tera_bops"] / 4)
        assert rows[name, 4]["size_bytes"] == plain[name]["size_bytes"]
    for one in table["differences"]:
        first, second = (rows[tuple(one[key])]["metrics"]["psnr"] for key in ("first", "second"))  # type: ignore[literal-required]
        assert one["metrics"]["psnr"][0] == pytest.approx(second - first, rel=1e-6)
    assert len(table["differences"]) == 3 + 2 * 2  # of rounding, and of uniform ones against ours
    heads, cells = activation_table(summary)
    assert [cells[0][0], cells[0][1][-3:], cells[1][1][-2:]] == ["ours", "a16", "a4"]
    page = realized.path("report.html").read_text(encoding="utf-8")
    assert "<h2>Activations</h2>" in page
    assert f"<th>{heads[-1]}</th>" in page


def test_ours_is_written_as_a_small_pipeline_that_draws_the_same_pictures(
    tiny_model: Model, realized: Store, space: Space
) -> None:
    import torch

    from qsdm.checkpoint import contents, load_quantized
    from qsdm.denoisers import prompts_of
    from qsdm.measurement.drawer import Drawer
    from qsdm.measurement.evaluator import Evaluator
    from qsdm.measurement.protocol import protocol_of, seed_of
    from qsdm.quant.calibrated import PackedWeights

    chosen = QuantConfig.from_json(read_json(realized.path("chosen.json")))
    found = contents(realized.path("checkpoint"))
    assert found.packed_bytes == cost.size_bytes(space.graph, chosen, 16)
    assert (
        read_json(realized.path("summary.json"))["checkpoint"]["packed_bytes"] == found.packed_bytes
    )
    prompts = prompts_of(tiny_model)
    packed = PackedWeights(realized.path("calibration/small"))
    drawer = Drawer(tiny_model, space.graph, packed)
    evaluator = Evaluator(drawer, {}, protocol_of(tiny_model, prompts, 0, 2), prompts)
    wanted = evaluator.pictures(chosen)
    loaded = load_quantized(realized.path("checkpoint"))
    loaded.set_progress_bar_config(disable=True)
    drawn = loaded(
        prompts[:2],
        num_inference_steps=tiny_model.steps,
        guidance_scale=tiny_model.guidance,
        height=16,
        width=16,
        generator=[torch.Generator().manual_seed(seed_of(0, i)) for i in range(2)],
        output_type="np",
    ).images
    # What is not quantized (biases, norms, the autoencoder) went through 16 bit.
    assert np.abs(255 * drawn - wanted).max() < 3


def test_the_checkpoint_has_a_model_card(realized: Store, tmp_path: Path) -> None:
    from qsdm.checkpoint import card, contents
    from qsdm.measurement.memory import tensors_in, total

    folder = realized.path("checkpoint")
    text = (folder / "README.md").read_text(encoding="utf-8")
    chosen = QuantConfig.from_json(read_json(realized.path("chosen.json")))
    ours = next(
        row for row in read_json(realized.path("summary.json"))["rows"] if row["name"] == "ours"
    )
    found = contents(folder)
    here = {name: total(tensors) for name, tensors in tensors_in(folder).items()}
    assert here["unet"] == found.total_bytes - found.header_bytes
    for said in (
        chosen.digest,
        f"{ours['avg_bits']:.4f} of 16",
        f"| {found.packed_bytes:,} bytes,",
        f"| {here['unet']:,} |",
        f"| {sum(here.values()):,} |",
        "4 pictures of 16 px, 2 steps, guidance 2, seed set 1",
        "| psnr | {:.4f} | {:.4f} to {:.4f} | - |".format(
            value := ours["metrics"]["psnr"],
            value - 1.96 * ours["standard_errors"]["psnr"],
            value + 1.96 * ours["standard_errors"]["psnr"],
        ),
        "load_quantized(",
        "DiffusionPipeline.from_pretrained(",
        "itself make inference faster",
    ):
        assert said in text, said
    assert "base_model" not in text  # a directory has no name that others know
    assert str(realized.path("")) not in text

    assert not card.is_kept(folder)
    (tmp_path / "README.md").write_text(text.replace(card.MARK, ""), encoding="utf-8")
    assert card.is_kept(tmp_path)


def test_nothing_is_drawn_or_packed_twice(
    tiny_model: Model, realized: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = realized.path("checkpoint/unet/diffusion_pytorch_model.safetensors")
    before = {
        name: realized.path(name).read_bytes() for name in ("pictures/ours.png", "chosen.json")
    }

    def again(start: WorkerStart) -> None:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(WorkerStart, "__call__", again)
    written = packed.stat().st_mtime_ns
    realize(Workspace(tiny_model, SPEC, realized.root), QUALITY, **FEW)
    assert packed.stat().st_mtime_ns == written
    assert before == {name: realized.path(name).read_bytes() for name in before}

    packed.write_bytes(b"")  # a folder that somebody changed is written again
    realize(Workspace(tiny_model, SPEC, realized.root), QUALITY, **FEW)
    check_tensors(packed, "")


def probed_steps(harms: Sequence[float]) -> StepTable:
    """What `probe` writes of equal bins of steps that suffer so much."""
    num = len(harms)
    rows: list[StepRow] = [
        {
            "name": bin_name(i, num),
            "start": i / num,
            "stop": (i + 1) / num,
            "num_steps": 1,
            "metrics": {"fd_lite0": 100 + harm, "psnr": 30.0 - i},
            "standard_errors": {},
            "differences": {"fd_lite0": [harm, 1.0]},
            "qconfig": "",
        }
        for i, harm in enumerate(harms)
    ]
    rows.append({**rows[0], "name": "all"})
    return {"denoiser": "tiny", "protocol": {}, "qconfig": {}, "full": {}, "rows": rows}


def test_a_pair_of_configurations_is_chosen_for_bins_of_steps(
    tiny_model: Model, searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(searched, tmp_path / "store"))
    workspace, few = Workspace(tiny_model, SPEC, root), FEW | {"activations": [], "num_random": 0}
    store = workspace.store
    with pytest.raises(StoreError, match=r"not probed: run .*qsdm\.probe \+model=tiny steps=5"):
        realize(workspace, QUALITY, steps=True, **few)
    STEPS.write(store.path(STEPS_FILE), probed_steps([-1.0, 3.0]))
    summary = realize(workspace, QUALITY, steps=True, **few)

    ours, stepped = summary["rows"][-2:]
    assert (ours["name"], stepped["name"]) == ("ours", "ours-steps")
    qconfig = CHOSEN_STEPS.read(store.path("chosen-steps.json"))
    first, last = summary["steps"]["bins"]
    assert [(first["share"], last["share"])] == [(0, 1)]  # what suffers less than nothing is noise
    assert first["avg_bits"] < LIMIT < last["avg_bits"]
    assert stepped["avg_bits"] == pytest.approx((first["avg_bits"] + last["avg_bits"]) / 2)
    assert stepped["avg_bits"] <= LIMIT
    assert stepped["qconfig"] == qconfig.digest
    assert [one["qconfig"] for one in summary["steps"]["candidates"]] == [qconfig.digest]
    assert set(summary["differences"]["ours-steps"]) == {"fd_lite0", "psnr"}

    # The file holds both versions, and its bytes are those of the row.
    written = contents(store.path("checkpoint"))
    assert written.bins == ("0.5 to 1",)
    assert summary["checkpoint"]["packed_bytes"] == stepped["size_bytes"]
    assert stepped["size_bytes"] > 1.5 * ours["size_bytes"]
    text = step_sentence(summary)
    assert text is not None
    assert text in capsys.readouterr().out
    assert f"both versions take {stepped['size_bytes']:,} bytes" in text
    assert "minus ours, paired: fd_lite0" in text
    assert text.partition(";")[0] in store.path("report.html").read_text("utf-8")

    for match, changed in {
        "not chosen with rounded activations yet": {"activations": [8]},
        "need points of the front above budget.avg_bits=9": {"budget": {"avg_bits": 9}},
        "no two points of the front keep budget.size_bytes": {"budget": {"size_bytes": 24_900}},
    }.items():
        with pytest.raises(ValueError, match=match):
            realize(workspace, QUALITY, steps=True, **few | changed)
    balanced = Objective(QUALITY.weights, "psnr")
    with pytest.raises(ValueError, match="front was searched without the axis 'psnr'"):
        realize(workspace, balanced, steps=True, **few)
    distance = 10**0.1  # of the second bin, where the first has 1
    shares = [one.fidelity_share for one in read_bins(store, balanced)]
    assert shares == pytest.approx([distance / (1 + distance), 1 / (1 + distance)])


def test_the_larger_configuration_goes_where_steps_suffer(space: Space) -> None:
    """For each number of bins, the pair with the best sum of predictions within the mean bits."""
    rng = np.random.default_rng(3)
    qconfigs = [space.sample(rng, share) for share in np.linspace(0, 1, 8)]
    bits = [cost.avg_bits(space.graph, qconfig, 16) for qconfig in qconfigs]
    points = [
        {"qconfig": q.to_json(), "predicted": -100 * 2**-own}
        for q, own in zip(qconfigs, bits, strict=True)
    ]
    terms = Terms(space, QUALITY, Constraints(avg_bits=3.6), {})
    names = [("first", 0.1), ("middle", 0.2), ("last", 0.7)]
    bins = [Suffering(n, i / 3, (i + 1) / 3, share) for i, (n, share) in enumerate(names)][::-1]
    found = propose(terms, bins, {"points": points}).best
    edges = [[(b.start, b.stop) for b in one.qconfig.steps] for one in found]
    assert sorted(edges) == [[(1 / 3, 1)], [(2 / 3, 1)]]
    assert found[0].predicted >= found[1].predicted
    for one in found:
        within, elsewhere = one.qconfig.steps[0].qconfig, one.qconfig.elsewhere
        assert bits[qconfigs.index(within)] > bits[qconfigs.index(elsewhere)]
        share = one.qconfig.steps[0].share
        harm = 0.7 if share < 0.5 else 0.9
        best = max(
            harm * points[i]["predicted"] + (1 - harm) * points[j]["predicted"]
            for i in range(8)
            for j in range(8)
            if share * bits[i] + (1 - share) * bits[j] <= 3.6 and bits[j] < bits[i]
        )
        assert one.predicted == pytest.approx(best)
        assert cost.avg_bits(space.graph, one.qconfig, 16) <= 3.6


def test_pairs_have_the_tradeoff_of_single_points(space: Space, tiny_model: Model) -> None:
    rng = np.random.default_rng(4)
    qconfigs = [space.sample(rng, share) for share in np.linspace(0, 1, 12)]
    bits = np.array([cost.avg_bits(space.graph, qconfig, 16) for qconfig in qconfigs])
    quality, psnr = -100 * 2**-bits + rng.normal(0, 1, 12), 90 - 20 * bits + rng.normal(0, 2, 12)
    points = [
        {"qconfig": q.to_json(), "predicted": own, "metrics": {"psnr": value}}
        for q, own, value in zip(qconfigs, quality, psnr, strict=True)
    ]
    balanced = Objective(QUALITY.weights, "psnr")
    terms = Terms(space, balanced, Constraints(avg_bits=3.6), tiny_model.metrics)
    bins = [Suffering("last", 0.5, 1, 0.9, 0.4), Suffering("first", 0, 0.5, 0.1, 0.6)]
    found = propose(terms, bins, {"points": points}, enough=-8.0)
    within = [points[i] for i in np.flatnonzero(bits <= 3.6)]
    assert found.tradeoff == terms.tradeoff(within, -8.0)
    assert found.tradeoff is not None
    scores = {
        (i, j): found.tradeoff.score(
            0.9 * quality[i] + 0.1 * quality[j],
            -10 * np.log10(0.4 * 10 ** (-psnr[i] / 10) + 0.6 * 10 ** (-psnr[j] / 10)),
        )
        for i in range(12)
        for j in range(12)
        if bits[j] < bits[i] <= 7.2 - bits[j]
    }
    high, low = max(scores, key=scores.__getitem__)
    (best,) = found.best
    assert best.qconfig.steps[0].qconfig == qconfigs[high]
    assert best.qconfig.elsewhere == qconfigs[low]
    without = propose(dataclasses.replace(terms, objective=QUALITY), bins, {"points": points})
    assert without.best[0].qconfig != best.qconfig


def test_random_ones_that_were_measured_on_the_fresh_noise_come_first(space: Space) -> None:
    rng = np.random.default_rng(3)
    ours = space.sample(rng, 0.5)
    size = cost.size_bytes(space.graph, ours, 16)
    alike = [near(space, size, 0.01, rng) for _ in range(3)]
    larger = space.uniform("uaq-4")

    def outcome(qconfig: QuantConfig, stage: str) -> Outcome:
        return Outcome(qconfig, "p", {"psnr": 20.0}, 4, provenance={"stage": stage})

    stored = [
        outcome(ours, "realize"),
        outcome(larger, "test"),
        outcome(alike[0], "realize"),  # proposed, not random
        outcome(alike[1], "test"),
        outcome(alike[2], "measure"),
    ]
    store = SimpleNamespace(outcomes=lambda _: stored)
    ready = SimpleNamespace(space=space, store=store, versions={})
    for num in (0, 1, 2, 4):
        chosen = random_of_size(ready, None, ours, num, np.random.default_rng(0))  # type: ignore[arg-type]
        assert chosen[:2] == alike[1:][:num]
        assert len(chosen) == num
        for qconfig in chosen:
            assert cost.size_bytes(space.graph, qconfig, 16) == pytest.approx(size, rel=0.01)
    ready.versions = {"psnr": "2"}  # those of another version of the metric are drawn anew
    assert alike[1] not in random_of_size(ready, None, ours, 2, rng)  # type: ignore[arg-type]


def test_what_rounds_have_measured_is_chosen_from(space: Space) -> None:
    rng = np.random.default_rng(4)
    small, large, lost = (space.sample(rng, target) for target in (0.2, 0.9, 0.3))
    stored = [Outcome(q, "p", {"psnr": 20.0}, 4) for q in (small, large)]
    entries = [
        {"digest": q.digest, "avg_bits": cost.avg_bits(space.graph, q, 16), "predicted": 1.0}
        for q in (small, large, lost)
    ]
    front = {"rounds": {"rounds": [{"proposals": entries[:1]}, {"proposals": entries[1:]}]}}
    ready = SimpleNamespace(store=SimpleNamespace(outcomes=lambda _: stored))
    measured = of_rounds(ready, front, None)  # type: ignore[arg-type]
    assert [(entry, outcome.qconfig) for entry, outcome in measured] == [
        (entries[0], small),
        (entries[1], large),
    ]
    limit = entries[0]["avg_bits"] + 0.01
    terms = Terms(space, Objective({"psnr": 1}), Constraints(avg_bits=limit), {})
    assert [terms.allow(outcome.qconfig) for _, outcome in measured] == [True, False]
    assert of_rounds(ready, {"rounds": None}, None) == []  # type: ignore[arg-type]


def test_takes_the_best_predicted_points_below_the_limit() -> None:
    def point(bits: float, value: float, *methods: str) -> dict:
        return {
            "avg_bits": bits,
            "predicted": value,
            "qconfig": {"methods": dict(enumerate(methods))},
        }

    points = [
        point(3.1, -3.0, "uaq-3", "uaq-3"),
        point(3.3, -2.0, "uaq-4", "uaq-3"),
        point(3.5, -1.0, "uaq-3", "uaq-4"),
        point(3.5, -1.5, "uaq-3", "uaq-4"),  # a copy of the one above, taken last
        point(3.6, 0.0, "uaq-4", "uaq-4"),
    ]
    assert [p["predicted"] for p in best_points(points[:4], 4)] == [-1.0, -2.0, -3.0, -1.5]
    assert [p["avg_bits"] for p in best_points(points[:4], 2)] == [3.5, 3.3]


def test_points_must_keep_the_constraints(space: Space) -> None:
    three, four = space.uniform("uaq-3"), space.uniform("uaq-4")
    bits = [cost.avg_bits(space.graph, qconfig, 16) for qconfig in (three, four)]
    points = [
        {"qconfig": qconfig.to_json(), "avg_bits": b, "predicted": b}
        for qconfig, b in zip((three, four), bits, strict=True)
    ]

    def allowed(front: dict, **given) -> list[float]:
        terms = Terms(space, Objective({"fd": -1}), Constraints.of(**given), {})
        return [point["avg_bits"] for point in terms.allowed_points(front)]

    assert allowed({"points": points}, budget={"avg_bits": bits[1]}) == bits
    assert allowed({"points": points}, budget={"avg_bits": bits[1] - 0.01}) == bits[:1]
    assert allowed({"points": points}, forbid="uaq-3") == bits[1:]
    with pytest.raises(ValueError, match=r"no point .* keeps budget.avg_bits=3.3 .*same constrain"):
        allowed({"points": points[1:]}, budget={"avg_bits": 3.3})
    narrow = {"points": points[:1], "constraints": {"budget": {"avg_bits": 3.2}}}
    with pytest.raises(ValueError, match=r"within budget.avg_bits=3.2, which is less than .*=3.5"):
        allowed(narrow, budget={"avg_bits": 3.5})
    with pytest.raises(ValueError, match=r"cannot be met: .* reach from"):
        allowed({"points": points}, budget={"avg_bits": 2.5})
    with pytest.raises(ValueError, match="'fd_lite' is not measured; the metrics are psnr"):
        Terms(space, Objective({"fd": -1}, "fd_lite"), Constraints(), {"psnr": Psnr()})


def test_with_an_axis_of_fidelity_the_knee_is_chosen(space: Space) -> None:
    """By what was measured, in units of the predicted front."""
    rng = np.random.default_rng(8)
    qconfigs = [space.sample(rng, share) for share in (0.1, 0.5, 0.9)]
    points = [
        {
            "qconfig": qconfig.to_json(),
            "size_bytes": cost.size_bytes(space.graph, qconfig, 16),
            "avg_bits": 3.5,
            "predicted": quality,
            "metrics": {"psnr": psnr},
        }
        for qconfig, quality, psnr in zip(
            qconfigs, (-300.0, -310.0, -340.0), (20.0, 24.0, 25.0), strict=True
        )
    ]
    terms = Terms(space, Objective({"fd": -1}, "psnr"), Constraints(), {"psnr": Psnr()})
    tradeoff = terms.tradeoff(terms.allowed_points({"points": points}))
    assert tradeoff is not None
    assert (tradeoff.quality_span, tradeoff.metric_span) == (40.0, 5.0)
    assert [p["predicted"] for p in best_points(points, 1, tradeoff)] == [-310.0]
    outcomes = [
        Outcome(qconfig, "p", {"fd": fd, "psnr": psnr}, 4)
        for qconfig, fd, psnr in zip(
            qconfigs, (290.0, 305.0, 306.0), (20.0, 23.0, 24.0), strict=True
        )
    ]
    measured = Measured({outcome.qconfig.digest: outcome for outcome in outcomes})
    chosen, why = terms.choose(measured, qconfigs, tradeoff)
    assert chosen == qconfigs[2]
    assert "knee of the objective (-306; the best has -290) and psnr (24; there 20)" in why
    plain = Terms(space, Objective({"fd": -1}), Constraints(), {"psnr": Psnr()})
    assert plain.choose(measured, qconfigs, None)[0] == qconfigs[0]
    limited = Constraints(limit={"lora_retention": 0.93}, lora=Path("ink.safetensors"))
    kept = {
        qconfig.digest: Difference(value, 0.01)
        for qconfig, value in zip(qconfigs, (0.9, 0.95, 0.97), strict=True)
    }
    adapted = Terms(space, Objective({"fd": -1}), limited, {}, cast(Retaining, object()))
    chosen, why = adapted.choose(measured, qconfigs, None, kept)
    assert chosen == qconfigs[1]
    assert why.endswith("lora_retention=0.93; it retains 95.0 ± 2.0 % of the adapter's effect")
    with pytest.raises(ValueError, match=r"limit\.lora_retention=0\.93, the best has 0\.9\)"):
        adapted.choose(measured, qconfigs[:1], None, kept)
    with pytest.raises(ValueError, match=r"searched without the axis 'psnr': run .*qsdm\.search"):
        terms.tradeoff([{**points[0], "metrics": {}}])


def test_bad_input_names_the_remedy(tiny_model: Model, traced: Path, tmp_path: Path) -> None:
    objective = Objective({"fd_lite0": -1})
    with pytest.raises(StoreError, match=r"run python -m qsdm\.trace \+model=tiny"):
        realize(Workspace(tiny_model, SPEC, tmp_path), objective, engine=Serial())
    with pytest.raises(ValueError, match="seed_set other than label_seed_set"):
        realize(Workspace(tiny_model, SPEC, traced), objective, seed_set=0, engine=Serial())
    learned = Store(tmp_path, "tiny").path("predictor/small/report.json")
    about = {"denoiser": "tiny", "space": "small", "objective": {"fd_lite0": -1}, "protocol": "0"}
    REPORT.write(learned, about | predictor_report(4) | {"seed_set": 1})
    with pytest.raises(ValueError, match="predictor's labels have seed_set=1"):
        realize(Workspace(tiny_model, SPEC, tmp_path), objective, engine=Serial())
    other = SpaceSpec("other", SPEC.methods)
    with pytest.raises(StoreError, match=r"run python -m qsdm\.calibrate \+model=tiny"):
        realize(Workspace(tiny_model, other, traced), objective, engine=Serial())
