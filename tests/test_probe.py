"""probe: each weight of a tiny pipeline alone, by three fidelities; groups where there are many."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_files import factors, write
from test_measure import SPACE

from qsdm.calibrate import calibrate
from qsdm.denoisers import Model, prompts_of
from qsdm.engine.serial import Serial
from qsdm.measurement.drawer import Drawer, Drawing
from qsdm.measurement.forward import output_of, record
from qsdm.measurement.groups import next_groups, partitions
from qsdm.measurement.inputs import Extent
from qsdm.measurement.labels import Bank
from qsdm.measurement.retention import drawings_of
from qsdm.outcome import EvaluationError, Objective
from qsdm.predictor.best_probes import choose_probes
from qsdm.predictor.encode import Encoding, encode
from qsdm.predictor.probes import ProbeError, is_probe
from qsdm.predictor.retention import read_retention
from qsdm.probe import probe
from qsdm.probing import nearness_of
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.qconfig.steps import StepBin
from qsdm.quant.calibrated import PackedWeights
from qsdm.report import page, results
from qsdm.report.steps import step_table
from qsdm.store import Store, StoreError
from qsdm.store.schemas import STEPS
from qsdm.trace import trace
from qsdm.workspace import Workspace

QUALITY = Objective({"fd_lite0": -1})
QUICK: dict[str, Any] = {"num_images": 2, "batch_size": 2, "engine": Serial()}


@pytest.fixture(scope="module")
def calibrated(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("probed")
    trace(Workspace(tiny_model, root=root))
    calibrate(Workspace(tiny_model, SPACE, root))
    return root


@pytest.fixture
def workspace(tiny_model: Model, calibrated: Path, tmp_path: Path) -> Workspace:
    return Workspace(tiny_model, SPACE, Path(shutil.copytree(calibrated, tmp_path / "store")))


def test_forwards_draw_no_picture_of_a_probe_and_resume(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = workspace.space.graph.weights
    probes = probe(workspace, QUALITY, fidelity="forward", **QUICK)
    assert [len(o.qconfig.methods) for o in probes] == [1] * len(weights)
    assert {next(iter(o.qconfig.methods)) for o in probes} == {w.name for w in weights}
    assert all(set(o.metrics) == {"output_error"} and o.num_images == 2 for o in probes)
    errors = np.array([o.metrics["output_error"] for o in probes])
    assert (errors >= 0).all()
    assert (errors > 1e-8).mean() > 0.9
    assert f"plan: {len(weights)} probes x 3 time steps" in capsys.readouterr().out
    assert not list(workspace.store.path("pictures").glob("*"))
    again = probe(workspace, QUALITY, fidelity="forward", **QUICK)
    assert again == probes  # provenance, with its time, included
    assert "plan: 0 probes" in capsys.readouterr().out


def test_inputs_are_rounded_role_by_role(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    rounded = {
        bits: probe(workspace, QUALITY, fidelity="forward", activations=bits, **QUICK)
        for bits in (3, 8)
    }
    told = capsys.readouterr().out
    graph = workspace.space.graph
    names = [name for outcome in rounded[3] for name in outcome.qconfig.inputs]
    assert sorted(names) == sorted(weight.name for weight in graph.weights)
    roles = {node.weight.name: str(node.role) for node in graph.nodes if node.weight is not None}
    for coarse, fine in zip(*rounded.values(), strict=True):
        assert len({roles[name] for name in coarse.qconfig.inputs}) == 1
        assert not coarse.qconfig.methods
        assert coarse.metrics["output_error"] > fine.metrics["output_error"] > 0  # type: ignore[operator]
        assert not is_probe(coarse)  # harm of another kind than a weight's
    assert "attn_q" in told
    assert "largest outliers" in told
    assert f"plan: {len(rounded[3])} probes" in told
    again = probe(workspace, QUALITY, fidelity="forward", activations=3, **QUICK)
    assert again == rounded[3]
    for wrong in (1, 16):
        with pytest.raises(ValueError, match=rf"wanted activations of at .* \(got {wrong}\)"):
            probe(workspace, QUALITY, activations=wrong, **QUICK)


def test_bins_of_steps_are_quantized_alone(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = workspace.space
    probes = probe(workspace, QUALITY, steps=2, **QUICK)
    uniform = space.uniform("uaq-3")
    assert [[(b.start, b.stop) for b in o.qconfig.steps] for o in probes] == [
        [(0, 0.5)],
        [(0.5, 1)],
        [],
    ]
    assert probes[2].qconfig == uniform
    assert not any(is_probe(outcome) for outcome in probes[:2])
    told = capsys.readouterr().out
    assert "plan: 3 configurations x 2 pictures = 6, and 2 of full" in told
    table = workspace.store.read(STEPS, "steps.json")
    assert [row["num_steps"] for row in table["rows"]] == [1, 1, 2]
    assert [row["metrics"]["psnr"] for row in table["rows"]] == [o.metrics["psnr"] for o in probes]
    assert len({o.metrics["psnr"] for o in probes}) == 3
    (heads, cells) = step_table(results.read(workspace.store).steps, {}) or ([], [])
    assert heads == ["quantized in", "steps", "fd_lite0", "psnr"]
    assert [row[:2] for row in cells] == [["1 of 2", "1"], ["2 of 2", "1"], ["all", "2"]]
    assert cells[0][2] in told
    assert cells[0][2] in page.render(results.Results("tiny", steps=table))
    assert workspace.store.path("steps.png").read_bytes()[1:4] == b"PNG"
    # The same configuration from a file; nothing is drawn again.
    path = tmp_path / "q.json"
    path.write_text(json.dumps(uniform.to_json()))
    assert probe(workspace, QUALITY, steps=2, config=path, **QUICK) == probes
    assert "plan: no picture is missing" in capsys.readouterr().out
    wrong: dict[str, dict[str, Any]] = {
        r"wanted 1 to 2 bins of steps, .* \(got steps=0\)": {"steps": 0},
        r"wanted 1 to 2 bins of steps, .* \(got steps=3\)": {"steps": 3},
        "bins of steps are probed by pictures": {"steps": 2, "fidelity": "forward"},
        "config is what steps probes": {"config": path},
        "no file .* give config=FILE": {"steps": 2, "config": tmp_path / "none"},
    }
    for message, arguments in wrong.items():
        with pytest.raises((ValueError, StoreError), match=message):
            probe(workspace, QUALITY, **(QUICK | arguments))

    drawer = Drawer(workspace.model, space.graph, PackedWeights(workspace.packed), 2)
    drawings = [Drawing(i, caption, i) for i, caption in enumerate(("a red house", "rain"))]

    def drawn(qconfig: QuantConfig, *bins: QuantConfig) -> np.ndarray:
        edges = ((0, 0.5), (0.5, 1)) if len(bins) == 2 else ((0.5, 1),)
        pairs = zip(edges, bins, strict=False)
        steps = tuple(StepBin(*edge, one) for edge, one in pairs)
        return drawer.draw(dataclasses.replace(qconfig, steps=steps), drawings)

    full, rounded = QuantConfig("tiny", {}), uniform.with_activations(3)
    pictures = {qconfig: drawn(qconfig) for qconfig in (full, uniform, rounded)}
    for qconfig, whole in pictures.items():
        for outside in pictures:
            np.testing.assert_array_equal(drawn(outside, qconfig, qconfig), whole)
    mixed = [drawn(full, rounded), drawn(rounded, full), drawn(uniform, rounded)]
    for a, b in itertools.combinations([*pictures.values(), *mixed], 2):
        assert (a != b).any()
    np.testing.assert_array_equal(drawn(full), pictures[full])
    with pytest.raises(ValueError, match=r"needs a sampler.*\(got 0 to 1\)"):
        drawer.switch(QuantConfig("tiny", {}, steps=(StepBin(0, 1, uniform),)))


@pytest.mark.filterwarnings("ignore")  # peft's and diffusers' own
def test_what_is_left_of_a_lora_is_what_merged_weights_leave(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("peft")
    space, model = workspace.space, workspace.model
    drawer = Drawer(model, space.graph, PackedWeights(workspace.packed), 2)
    pairs = factors(drawer.denoiser)
    file = write(tmp_path / "style.safetensors", "diffusers", pairs, model.component)
    with pytest.raises(StoreError, match=r"was not measured: run .*qsdm\.probe \+model=tiny lora="):
        read_retention(workspace, file)
    assert probe(workspace, QUALITY, lora=file, num_steps=1, **QUICK) == []
    told = capsys.readouterr().out
    num = len(space.graph.weights)
    assert f"plan: {num + 1} probes x 1 time steps, with the LoRA and without" in told
    assert "uaq-3 for all weights retains" in told
    probed = read_retention(workspace, file)
    assert set(probed.alone) == {weight.name for weight in space.graph.weights}

    calls = record(drawer, drawings_of(workspace, 0, 2), prompts_of(model), 1)

    @torch.inference_mode()
    def effects(qconfig: QuantConfig) -> torch.Tensor:
        """By the values of weights and adapter, added by hand."""
        drawer.switch(qconfig)
        outputs = []
        for sign in (0, 1, -1):
            for name, (a, b) in pairs.items():
                drawer.denoiser.get_parameter(f"{name}.weight").data += sign * b @ a
            given = [call.arguments for call in calls]
            outputs.append([output_of(drawer.denoiser(*args, **kw)) for args, kw in given])
        return torch.stack(outputs[1]) - torch.stack(outputs[0])

    full, method = effects(QuantConfig(model.name, {})), QuantMethod("uaq", 3)
    some = next(iter(pairs))
    own = space.uniform(method).methods[some]  # uaq-3 or its substitute
    for qconfig, (value, _) in (
        (space.uniform(method), probed.whole[method]),
        (QuantConfig(model.name, {some: own}), probed.alone[some][own]),
    ):
        changed = (effects(qconfig) - full).square().sum() / full.square().sum()
        assert value == pytest.approx(1 - changed.item(), abs=2e-3)
        assert 0 < changed < 1

    probe(workspace, QUALITY, lora=file, num_steps=1, **QUICK)
    assert "plan: 0 probes" in capsys.readouterr().out
    predict = read_retention(workspace, file).model(workspace.table)
    three, four = (space.uniform(m) for m in ("uaq-3", "uaq-4"))
    low, high = predict(np.stack([space.encode(three), space.encode(four)]))
    assert low == pytest.approx(probed.whole[method][0])
    assert low < high < 1
    other = dataclasses.replace(workspace, model=dataclasses.replace(model, guidance=9.0))
    with pytest.raises(StoreError, match="on other weights, or drawn in another way than today"):
        read_retention(other, file)
    with pytest.raises(ValueError, match=r"probed weight by weight \(got pairs=2"):
        probe(workspace, QUALITY, lora=file, pairs=2, **QUICK)


def test_outliers_are_found_in_the_inputs_of_layers() -> None:
    plain, spiked = torch.randn(2, 400, 8, generator=torch.Generator().manual_seed(0))
    spiked[0, 0] = 1e3
    extents = [Extent() for _ in range(3)]
    for extent, x in zip(extents, (plain, spiked, torch.ones(2)), strict=True):
        for part in x.split(50):
            extent(torch.nn.Identity(), (part,))
    assert extents[0].ratio == pytest.approx(float(plain.abs().max() / plain.std(correction=0)))
    assert extents[1].ratio == pytest.approx(float(1e3 / spiked.std(correction=0)), rel=1e-5)
    assert extents[1].ratio > 10 * extents[0].ratio
    assert np.isnan(extents[2].ratio)


@pytest.mark.slow
def test_more_bits_err_less(workspace: Workspace) -> None:
    methods = ["uaq-3", "uaq-4"]
    probes = probe(workspace, QUALITY, methods, "forward", num_steps=1, **QUICK)
    num = len(workspace.space.graph.weights)
    coarse, fine = (
        np.array([o.metrics["output_error"] for o in part]) for part in (probes[:num], probes[num:])
    )
    assert np.median(coarse / np.maximum(fine, 1e-12)) > 2
    chosen = choose_probes(workspace.bank(), workspace.table, QUALITY)
    assert (chosen.fidelity, chosen.num_images, chosen.harm.shape) == ("forward", 0, (num, 2))
    # Most bits first.
    np.testing.assert_allclose(chosen.harm, np.stack([fine, coarse], axis=1))


def test_batches_agree(workspace: Workspace, tmp_path: Path) -> None:
    """Guidance doubles a batch; each drawing's outputs are found again."""
    other = dataclasses.replace(workspace, root=tmp_path / "other")
    shutil.copytree(workspace.root, other.root)
    errors = []
    for one, size in ((workspace, 3), (other, 1)):
        arguments = {"num_images": 3, "batch_size": size, "engine": Serial(), "max_probes": 12}
        probes = probe(one, QUALITY, fidelity="forward", num_steps=2, **arguments)  # type: ignore[arg-type]
        errors.append([o.metrics["output_error"] for o in probes])
    np.testing.assert_allclose(errors[0], errors[1], rtol=1e-2, atol=1e-9)


def test_the_most_faithful_probes_are_chosen(workspace: Workspace) -> None:
    """Distances first, then the objective; each measures only what is missing."""
    few = QUICK | {"max_probes": 12}
    drawn = probe(workspace, QUALITY, fidelity="drawn", **few)
    assert all(set(o.metrics) == {"psnr"} for o in drawn)
    chosen = choose_probes(workspace.bank(), workspace.table, QUALITY)
    assert (chosen.fidelity, chosen.num_images) == ("drawn", 2)
    full = probe(workspace, QUALITY, fidelity="full", **few)
    assert all({"psnr", "fd_lite0"} <= set(o.metrics) for o in full)
    pixels = {o.qconfig.digest: o.metrics["psnr"] for o in drawn}
    shared = [o for o in full if o.qconfig.digest in pixels]
    assert [o.metrics["psnr"] for o in shared] == [pixels[o.qconfig.digest] for o in shared]
    assert all(not o.is_label for o in full)
    chosen = choose_probes(workspace.bank(), workspace.table, QUALITY)
    assert (chosen.fidelity, chosen.harm.shape[1]) == ("full", 1)
    (whole,) = [o for o in workspace.store.outcomes() if not o.qconfig.methods]
    alone = {tuple(o.qconfig.methods): o for o in full}
    rows = {name: w for w, name in enumerate(chosen.weights)}
    narrow = [group for group in alone if all(set(g) >= set(group) or not set(g) & set(group)
                                              for g in alone)]  # fmt: skip
    assert narrow
    for group in narrow:
        loss = alone[group].metrics["fd_lite0"] - whole.metrics["fd_lite0"]  # type: ignore[operator]
        assert chosen.harm[[rows[name] for name in group], 0].sum() == pytest.approx(loss)


def test_a_plan_draws_nothing(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe(workspace, QUALITY, plan=True, **QUICK) == []
    num = len(workspace.space.graph.weights)
    printed = capsys.readouterr().out
    assert f"plan: {num} configurations x 2 pictures = {2 * num}, and 2 of full" in printed
    assert not workspace.store.path("outcomes.sqlite").exists()


def test_only_harmful_groups_are_opened(workspace: Workspace) -> None:
    num, most = len(workspace.space.graph.weights), 16
    assert num > most
    probes = probe(workspace, QUALITY, fidelity="forward", max_probes=most, **QUICK)
    assert len(probes) <= most
    assert len({o.qconfig.digest for o in probes}) == len(probes)
    sizes = [len(o.qconfig.methods) for o in probes]
    assert max(sizes) > 1
    chosen = choose_probes(workspace.bank(), workspace.table, QUALITY)
    assert len(chosen.weights) == num
    again = probe(workspace, QUALITY, fidelity="forward", max_probes=most, **QUICK)
    assert again == probes


class Quadratic:
    """A predictor of which every pair interacts, most of all the one of the given weights."""

    def __init__(self, encoding: Encoding, pair: tuple[int, int]) -> None:
        self.encoding, self.pair = encoding, list(pair)

    def by_fold(self, configurations: torch.Tensor) -> torch.Tensor:
        quantized = 1 - configurations[..., -1]
        return -(quantized.sum(dim=1) ** 2 + 50 * quantized[:, self.pair].prod(dim=1))[None]


def test_pairs_are_measured_beside_their_weights_alone(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    law = Quadratic(encode(workspace.space, workspace.table), (2, 5))
    monkeypatch.setattr(Workspace, "predictor", lambda self, objective: law)
    assert probe(workspace, QUALITY, pairs=2, plan=True, **QUICK) == []
    pairs = probe(workspace, QUALITY, pairs=2, **QUICK)
    names = [weight.name for weight in workspace.space.graph.weights]
    assert set(pairs[0].qconfig.methods) == {names[2], names[5]}
    assert [len(o.qconfig.methods) for o in pairs] == [2, 2]
    assert all(o.provenance["stage"] == "pairs" and not o.is_label for o in pairs)
    outcomes = workspace.store.outcomes()
    alone = {n for o in outcomes if len(o.qconfig.methods) == 1 for n in o.qconfig.methods}
    assert alone == {n for o in pairs for n in o.qconfig.methods}
    printed = capsys.readouterr().out
    assert "beyond the sum" in printed
    assert "  52.0  " in printed  # predicted: 50, and 2 of the square
    assert probe(workspace, QUALITY, pairs=2, **QUICK) == pairs
    assert f"plan: {2 + len(alone)} configurations" in printed
    assert "plan: no picture is missing" in capsys.readouterr().out
    # They are no probes of groups of weights.
    with pytest.raises(ProbeError, match="weights were not probed"):
        choose_probes(workspace.bank(), workspace.table, QUALITY)


def test_pairs_need_the_objective_and_a_predictor(workspace: Workspace) -> None:
    with pytest.raises(ValueError, match="give fidelity=full"):
        probe(workspace, QUALITY, fidelity="drawn", pairs=2, **QUICK)
    with pytest.raises(StoreError, match=r"run python -m qsdm\.train"):
        probe(workspace, QUALITY, pairs=2, **QUICK)
    with pytest.raises(ValueError, match="pairs"):
        probe(workspace, QUALITY, pairs=-1, **QUICK)
    with pytest.raises(ValueError, match="pairs_of must be weights or blocks"):
        probe(workspace, QUALITY, pairs=1, pairs_of="stages", **QUICK)
    with pytest.raises(ValueError, match="pairs_by must be difference or shapley"):
        probe(workspace, QUALITY, pairs_by="guess", **QUICK)


def test_groups_of_a_large_graph_stay_within_the_budget(workspace: Workspace) -> None:
    graph = workspace.space.graph
    levels = partitions(graph)
    names = [weight.name for weight in graph.weights]
    for coarse, fine in itertools.pairwise(levels):
        assert sorted(name for group in fine for name in group) == sorted(names)
        assert all(any(set(part) <= set(group) for group in coarse) for part in fine)
        assert len(fine) > len(coarse)
    assert levels[-1] == [(name,) for name in names]
    rng = np.random.default_rng(0)
    true = dict(zip(names, rng.lognormal(0, 2, len(names)), strict=True))
    for most in (len(levels[0]), 12, 20, 30):
        harm: dict = {}
        while groups := next_groups(graph, most, harm):
            assert not set(groups) & set(harm)
            harm |= {group: sum(true[name] for name in group) for group in groups}
        assert len(levels[0]) <= len(harm) <= most
        covered = {name for group in harm for name in group}
        assert covered == set(names)
    alone = [group for group in harm if len(group) == 1]
    assert np.mean([true[name] for (name,) in alone]) > np.mean(list(true.values()))
    assert next_groups(graph, len(names), {}) == levels[-1]
    with pytest.raises(ValueError, match="give max_probes="):
        next_groups(graph, len(levels[0]) - 1, {})


def test_bad_input_is_told(workspace: Workspace, tmp_path: Path) -> None:
    for message, arguments in {
        "fidelity must be one of forward, drawn, full": {"fidelity": "cheap"},
        "methods must name at least one": {"methods": []},
        "groups of weights are probed under one method": {
            "methods": ["uaq-3", "uaq-4"],
            "max_probes": 20,
        },
        "num_images": {"num_images": 1},
        "num_steps": {"num_steps": 0},
        "price_per_hour": {"price_per_hour": -1},
    }.items():
        with pytest.raises(ValueError, match=message):
            probe(workspace, QUALITY, **(QUICK | arguments))  # type: ignore[arg-type]
    with pytest.raises(StoreError, match=r"qsdm\.trace"):
        probe(Workspace(workspace.model, SPACE, tmp_path / "empty"), QUALITY, **QUICK)
    with pytest.raises(ProbeError, match="no weight of 'tiny' was measured alone: run python -m"):
        choose_probes(workspace.bank(), workspace.table, QUALITY)
    bare = Workspace(dataclasses.replace(workspace.model, metrics={}), SPACE, workspace.root)
    with pytest.raises(EvaluationError, match="has no metrics"):
        probe(bare, QUALITY, **QUICK)
    assert set(nearness_of({})) == {"psnr"}


def test_probes_of_a_part_of_the_weights_are_told(workspace: Workspace) -> None:
    from qsdm.store.outcomes import OutcomeDatabase

    probes = probe(workspace, QUALITY, fidelity="forward", num_steps=1, **QUICK)
    bank: Bank = workspace.bank()
    part = dataclasses.replace(bank, outcomes=bank.outcomes[:-3])
    with pytest.raises(ProbeError, match=f"3 of {len(probes)} weights were not probed"):
        choose_probes(part, workspace.table, QUALITY)
    # Probes of weights that the model no longer has are not its probes.
    store = Store(workspace.root, "tiny")
    protocol = store.protocols()[probes[0].protocol]
    other = dataclasses.replace(protocol, weights="others")
    database = OutcomeDatabase(store.path("outcomes.sqlite"))
    for outcome in probes[:3]:
        database.add(dataclasses.replace(outcome, protocol=other.digest), other)
    assert choose_probes(workspace.bank(), workspace.table, QUALITY).protocol == protocol
