"""measure: real pictures of a tiny pipeline, resumable, in this process and in others."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from pipelines import build_model
from processes import workers as running_workers

from qsdm.calibrate import calibrate
from qsdm.denoisers import Model
from qsdm.engine import EngineError
from qsdm.engine.serial import Serial
from qsdm.graph import Graph
from qsdm.measure import measure, read_configs, sample
from qsdm.measurement.rounded import errors_of_rounding
from qsdm.measurement.session import open_session
from qsdm.metrics.frechet import FrechetLite0
from qsdm.outcome import EvaluationError, Objective, Outcome
from qsdm.predictor.rounding import rounding_labels
from qsdm.probe import probe
from qsdm.qconfig import QuantConfig, QuantMethod, Space, SpaceSpec
from qsdm.recipes import RecipeError
from qsdm.store import Store, StoreError, room
from qsdm.store.files import read_json, write_json
from qsdm.store.room import NoRoom
from qsdm.trace import trace
from qsdm.workspace import Workspace

METHODS = ("uaq-3", "uaq-4", "kmeans_a-3", "kmeans_a-4")
SPACE = SpaceSpec("small", METHODS)


@pytest.fixture(scope="module")
def calibrated(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("calibrated")
    trace(Workspace(tiny_model, root=store))
    calibrate(Workspace(tiny_model, SPACE, store))
    return store


@pytest.fixture
def store(calibrated: Path, tmp_path: Path) -> Path:
    """Traced and calibrated, without outcomes."""
    return Path(shutil.copytree(calibrated, tmp_path / "calibrated"))


@pytest.mark.parametrize(
    ("room_for", "command", "sentence"),
    [
        ("memory", calibrate, "calibrating takes at least .* of memory, and 1 kB are available"),
        ("disk", calibrate, r"writing weights\.safetensors takes .* of disk, and 1 kB are free"),
        ("memory", measure, "drawing takes at least .* of memory, and 1 kB are available"),
        ("disk", measure, r"writing full-\w+\.safetensors takes .* of disk, and 1 kB are free"),
        ("memory", probe, "drawing takes at least .* of memory, and 1 kB are available"),
    ],
)
def test_too_little_room_is_said_before_a_stage_starts(
    tiny_model: Model,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    room_for: str,
    command: Callable[..., object],
    sentence: str,
) -> None:
    monkeypatch.setattr(room, f"free_{room_for}", lambda *_: 1_000)
    options: dict[str, object] = {}
    if command is not calibrate:
        options = {"num_images": 2, "engine": Serial()}
    if command is probe:
        options["objective"] = Objective({"fd_lite0": -1})
    with pytest.raises(NoRoom, match=sentence):
        command(Workspace(tiny_model, SPACE, store), **options)


@pytest.fixture(scope="module")
def space(tiny_model: Model, calibrated: Path) -> Space:
    graph = read_json(Store(calibrated, tiny_model.name).path("graph.json"))
    return SPACE.of(Graph.from_json(graph))


def test_measures_each_configuration_once(
    tiny_model: Model, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logged: list[dict] = []
    arguments = {
        "num_images": 6,
        "batch_size": 4,
        "engine": Serial(),
        "log": lambda row: logged.append(dict(row)),
    }
    first = measure(Workspace(tiny_model, SPACE, store), num_configs=2, **arguments)
    assert all(len(outcome.qconfig.methods) > 0 for outcome in first)
    assert all(outcome.num_images == 6 and outcome.metrics["psnr"] > 5 for outcome in first)
    assert set(first[0].halves) == {"fd_lite0", "psnr"}
    printed = capsys.readouterr().out
    assert "fp" in printed
    assert first[0].qconfig.digest[:12] in printed

    def num_logged() -> int:
        return sum("measure/outcomes" in row for row in logged)

    before = num_logged()
    again = measure(Workspace(tiny_model, SPACE, store), num_configs=3, **arguments)
    assert again[:2] == first  # provenance, with its times, included: nothing was measured again
    assert len(again) == 3
    assert num_logged() == before + 1
    kept = Store(store, tiny_model.name).outcomes()
    assert len(kept) == 4  # full precision is one of them
    assert [outcome.metrics["psnr"] for outcome in kept if not outcome.qconfig.methods] == [None]


def test_the_same_weights_are_measured_with_random_widths_of_inputs(
    tiny_model: Model, store: Path
) -> None:
    workspace = Workspace(tiny_model, SPACE, store)
    few = {"num_configs": 2, "num_images": 4, "batch_size": 4, "engine": Serial()}
    plain = measure(workspace, **few)
    rounded = measure(workspace, activations=[8, 4, 3], **few)
    assert [o.qconfig.methods for o in rounded] == [o.qconfig.methods for o in plain]
    assert {bits for o in rounded for bits in o.qconfig.inputs.values()} == {8, 4, 3}
    assert all(a.metrics != b.metrics for a, b in zip(plain, rounded, strict=True))
    protocols, objective = workspace.store.protocols(), Objective({"psnr": 1})
    labels = rounding_labels(workspace.store.outcomes(), protocols, objective)
    assert [o.qconfig for o in labels.outcomes] == [o.qconfig for o in rounded]
    with open_session(workspace, Serial(), 4) as ready:
        error = errors_of_rounding(ready, labels.bits)
    assert error.shape == (len(workspace.graph.weights), 3)
    assert (np.diff(error, axis=1) > 0).all()  # of 8, 4 and 3 bits
    with pytest.raises(ValueError, match=r"random activations \(got \[8\] with configs or alone"):
        measure(workspace, activations=[8], alone="uaq-3", **few)


def test_measures_the_configurations_of_a_file(
    tiny_model: Model, store: Path, space: Space, tmp_path: Path
) -> None:
    wanted = [space.uniform("uaq-3"), space.uniform("kmeans_a-4")]
    write_json(tmp_path / "some.json", [qconfig.to_json() for qconfig in wanted])
    found = measure(
        Workspace(tiny_model, SPACE, store),
        configs=tmp_path / "some.json",
        num_images=4,
        engine=Serial(),
    )
    assert [outcome.qconfig for outcome in found] == wanted
    assert found[0].metrics["psnr"] < found[1].metrics["psnr"]  # 3 bits, 4 bits


def test_what_cannot_be_measured_is_named_and_not_stored(
    tiny_model: Model, store: Path, space: Space, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One configuration asks for a method that was not calibrated; the other is measured all the
    same.
    """
    good = space.uniform("uaq-4")
    bad = QuantConfig("tiny", good.methods | {space.graph.weights[0].name: QuantMethod("uaq", 7)})
    write_json(tmp_path / "some.json", [bad.to_json(), good.to_json()])
    found = measure(
        Workspace(tiny_model, SPACE, store),
        configs=tmp_path / "some.json",
        num_images=5,
        engine=Serial(),
    )
    assert [outcome.qconfig for outcome in found] == [good]
    assert (
        f"1 configurations were set aside and have no outcome: {bad.digest[:12]}"
        in capsys.readouterr().out
    )
    assert bad.digest not in {outcome.qconfig.digest for outcome in Store(store, "tiny").outcomes()}
    write_json(tmp_path / "bad.json", bad.to_json())
    with pytest.raises(EvaluationError, match=r"no configuration has an outcome: .*uaq-7"):
        measure(
            Workspace(tiny_model, SPACE, store),
            configs=tmp_path / "bad.json",
            num_images=5,
            engine=Serial(),
        )


def test_a_smaller_sample_is_the_beginning_of_a_larger_one(space: Space) -> None:
    few, many = sample(space, 5, seed=3), sample(space, 30, seed=3)
    assert many[:5] == few
    assert len({qconfig.digest for qconfig in many}) == 30
    assert sample(space, 5, seed=4) != few


def test_reads_fronts_lists_and_single_configurations(space: Space, tmp_path: Path) -> None:
    made = [qconfig.to_json() for qconfig in sample(space, 2, seed=0)]
    forms = {
        "front": {"points": [{"qconfig": entry} for entry in made]},
        "list": made,
        "single": made[0],
    }
    for name, data in forms.items():
        (tmp_path / name).write_text(json.dumps(data))
        found = [qconfig.to_json() for qconfig in read_configs(tmp_path / name)]
        assert found == (made[:1] if name == "single" else made)
    (tmp_path / "foreign").write_text('{"rows": [1, 2]}')
    with pytest.raises(StoreError, match="holds no configurations"):
        read_configs(tmp_path / "foreign")
    (tmp_path / "empty").write_text("[]")
    with pytest.raises(StoreError, match="empty list"):
        read_configs(tmp_path / "empty")


def test_bad_input_names_the_remedy(tiny_model: Model, store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"run python -m qsdm\.trace \+model=tiny"):
        measure(Workspace(tiny_model, SPACE, tmp_path), engine=Serial())
    with pytest.raises(StoreError, match=r"run python -m qsdm\.calibrate \+model=tiny"):
        measure(Workspace(tiny_model, SpaceSpec("other", METHODS), store), engine=Serial())
    with pytest.raises(ValueError, match=r"num_images of at least 2 \(got 1\)"):
        measure(Workspace(tiny_model, SPACE, store), num_images=1, engine=Serial())
    with pytest.raises(ValueError, match=r"wanted batch_size of at least 1 \(got 0\)"):
        measure(Workspace(tiny_model, SPACE, store), batch_size=0, engine=Serial())


def test_what_is_misspelled_is_refused_before_anything_costly(
    tiny_model: Model, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def costly(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("began")

    for name in ("measurement.session.open_session", "calibrate.recorded", "calibrate.parameters"):
        monkeypatch.setattr(f"qsdm.{name}", costly)
    weighted = Workspace(tiny_model, SpaceSpec("weighted", ["uaq_w-4"]), store)
    with pytest.raises(ValueError, match=r"'relative', 'weighted' or 'paper' \(got 'weigthed'\)"):
        calibrate(weighted, error="weigthed")
    with pytest.raises(ValueError, match=r"imatrix=none\.dat would weight nothing"):
        calibrate(Workspace(tiny_model, SPACE, store), imatrix="none.dat")
    with pytest.raises(RecipeError, match=r"none\.dat"):
        calibrate(weighted, imatrix="none.dat")
    workspace, other = Workspace(tiny_model, SPACE, store), Objective({"fid": -1})
    with pytest.raises(ValueError, match="no 8-bit method"):
        measure(workspace, alone="uaq-8", engine=Serial())
    with pytest.raises(ValueError, match="no 8-bit method"):
        probe(workspace, Objective({"fd_lite0": -1}), ["uaq-8"], engine=Serial())
    with pytest.raises(ValueError, match="'fid' is not measured; the metrics are fd_lite0"):
        probe(workspace, other, engine=Serial())


def test_weights_of_another_training_are_refused(
    tiny_model: Model, store: Path, tmp_path: Path
) -> None:
    from tiny import build_tiny_model

    other = build_tiny_model(tmp_path, seed=1)
    assert other.name == tiny_model.name
    with pytest.raises(
        EngineError, match=r"other weights of 'tiny': run python -m qsdm\.calibrate \+model=tiny"
    ):
        measure(Workspace(other, SPACE, store), num_images=4, engine=Serial())


def test_weights_that_were_changed_while_loading_are_refused(
    tiny_model: Model, store: Path
) -> None:
    """A LoRA that is fused into 16 values of one layer, given by model.load; the files are the
    same.
    """
    from qsdm.denoisers import load_pipeline

    unet = load_pipeline(tiny_model).unet
    with torch.no_grad():
        unet.up_blocks[0].resnets[0].conv1.weight.view(-1)[:16] *= 1.02
    fused = dataclasses.replace(tiny_model, load={"unet": unet})
    with pytest.raises(EngineError, match=r"up_blocks\.0.* from other weights of 'tiny': run"):
        measure(Workspace(fused, SPACE, store), num_images=4, engine=Serial())
    # Calibrated from what is loaded, they are measured.
    calibrate(Workspace(fused, SPACE, store))
    assert measure(Workspace(fused, SPACE, store), num_configs=1, num_images=4, engine=Serial())
    with pytest.raises(EngineError, match=r"up_blocks\.0.* from other weights of 'tiny': run"):
        measure(Workspace(tiny_model, SPACE, store), num_images=4, engine=Serial())


def test_a_table_of_other_weights_is_not_learned_from(
    tiny_model: Model, store: Path, space: Space, tmp_path: Path
) -> None:
    from qsdm.denoisers import load_pipeline
    from qsdm.measurement.labels import require_fitted
    from qsdm.quant.calibrated import OtherWeights, read_table

    table = read_table(Store(store, "tiny").path("calibration/small"))
    require_fitted(tiny_model, table, space.graph)
    pipeline = load_pipeline(tiny_model)
    pipeline.save_pretrained(tmp_path / "again", max_shard_size="100KB")
    again = dataclasses.replace(tiny_model, path=str(tmp_path / "again"))
    require_fitted(again, table, space.graph)  # the same values in other files
    with torch.no_grad():
        pipeline.unet.conv_in.weight.view(-1)[0] += 1e-6
    pipeline.save_pretrained(tmp_path / "other")
    other = dataclasses.replace(tiny_model, path=str(tmp_path / "other"))
    with pytest.raises(OtherWeights, match=r"other weights of 'tiny': run python -m qsdm\.calib"):
        require_fitted(other, table, space.graph)
    with pytest.raises(OtherWeights, match=r"does not tell which weights .* again"):
        require_fitted(tiny_model, dataclasses.replace(table, fitted=""), space.graph)


SCRIPT = """
import json, signal, sys
from pathlib import Path
from qsdm.denoisers import Model
from qsdm.engine.local import Local
from qsdm.measure import measure
from qsdm.metrics.fidelity import Psnr
from qsdm.metrics.frechet import FrechetLite0
from qsdm.qconfig import SpaceSpec

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    fields, reference, methods, store = json.loads(sys.argv[1])
    model = Model(**fields, metrics={"fd_lite0": FrechetLite0(reference), "psnr": Psnr()})
    try:
        measure(model, SpaceSpec("small", methods), Path(store), 400, num_images=4, engine=Local(2))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.soak  # test_faults.py kills two drivers at once, test_local.py interrupts one
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_what_was_measured_survives(
    how: signal.Signals, tiny_model: Model, store: Path, tmp_path: Path
) -> None:
    root = tmp_path / "store"
    for name in (
        "graph.json",
        "calibration/small/weights.safetensors",
        "calibration/small/table.safetensors",
    ):
        target = root / "tiny" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(Store(store, "tiny").path(name))
    (tmp_path / "run.py").write_text(SCRIPT)
    names = (
        "name",
        "path",
        "denoiser",
        "component",
        "resolution_px",
        "steps",
        "guidance",
        "prompts",
    )
    fields = {name: getattr(tiny_model, name) for name in names}

    given = json.dumps([fields, tiny_model.metrics["fd_lite0"].reference, METHODS, str(root)])

    def stored() -> list[Outcome]:
        place = Store(root, "tiny")
        return place.outcomes() if place.path("outcomes.sqlite").exists() else []

    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    driver = subprocess.Popen(
        [sys.executable, str(tmp_path / "run.py"), given],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: len(stored()) >= 4 or driver.poll() is not None)
        assert driver.poll() is None
        workers = [worker.pid for worker in running_workers(psutil.Process(driver.pid))]
        assert len(workers) >= 2
        before = stored()
        driver.send_signal(how)
        assert driver.wait(timeout=200) == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    finally:
        driver.kill()
        driver.wait()
    until(lambda: not any(map(alive, workers)))
    after = stored()
    assert after[: len(before)] == before
    assert len({outcome.key for outcome in after}) == len(after)

    more = len(after) + 1  # full precision is one of them
    measure(Workspace(tiny_model, SPACE, root), more, num_images=4, engine=Serial())
    final = stored()
    assert final[: len(after)] == after
    assert len(final) == more + 1


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_metric_that_is_added_joins_the_others(
    tiny_model: Model, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same pictures are drawn again, their other metrics kept; what needs no new metric draws
    nothing.
    """
    fewer = dataclasses.replace(tiny_model, metrics={"fd_lite0": tiny_model.metrics["fd_lite0"]})
    arguments = {"num_configs": 1, "num_images": 3, "engine": Serial()}
    (before,) = measure(Workspace(fewer, SPACE, store), **arguments)
    (after,) = measure(Workspace(tiny_model, SPACE, store), **arguments)
    assert set(after.metrics) == {"fd_lite0", "psnr"}
    assert after.protocol == before.protocol
    assert after.metrics["fd_lite0"] == before.metrics["fd_lite0"]
    assert after.versions == {name: m.version for name, m in tiny_model.metrics.items()}
    (again,) = measure(Workspace(fewer, SPACE, store), **arguments)
    assert again == after
    assert "no picture is missing" in capsys.readouterr().out
    assert len(Store(store, "tiny").outcomes()) == 2  # with full precision


def test_what_load_leaves_out_is_another_protocol(tmp_path: Path) -> None:
    """One store and another hold the same numbers of a pipeline without its T5."""
    (tmp_path / "prompts.json").write_text('["a red house", "two small fish"]')
    model = build_model(
        "StableDiffusion3Pipeline",
        tmp_path / "p",
        prompts=str(tmp_path / "prompts.json"),
        metrics={"fd_lite0": FrechetLite0("zoo")},
    )
    without = dataclasses.replace(model, load={"text_encoder_3": None, "tokenizer_3": None})
    values = []
    for name in ("one", "another"):
        trace(Workspace(model, root=tmp_path / name), page=False)
        calibrate(Workspace(model, SPACE, tmp_path / name))
        arguments = {"num_configs": 1, "num_images": 4, "engine": Serial()}
        if name == "one":
            measure(Workspace(model, SPACE, tmp_path / name), **arguments)
        (outcome,) = measure(Workspace(without, SPACE, tmp_path / name), **arguments)
        values.append(outcome.metrics)
    assert values[0] == values[1]
    outcomes = Store(tmp_path / "one", model.name).outcomes()
    assert len({outcome.protocol for outcome in outcomes}) == 2
    assert len({outcome.metrics["fd_lite0"] for outcome in outcomes}) == 4


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A DDPM pipeline, which draws ``batch_size`` pictures of nothing in particular."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    from qsdm.denoisers import discover

    folder = tmp_path_factory.mktemp("ddpm")
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "p")
    (folder / "prompts.json").write_text('["a cat"]')
    return discover(
        str(folder / "p"),
        resolution_px=16,
        steps=2,
        prompts=str(folder / "prompts.json"),
        metrics={"fd_lite0": FrechetLite0("zoo")},
    )


def test_an_unconditional_pipeline_draws_as_many_as_are_asked_for(
    unconditional: Model, tmp_path: Path
) -> None:
    from qsdm.measurement.worker import read_full

    pictures = []
    for size in (4, 1):
        store = tmp_path / str(size)
        trace(Workspace(unconditional, root=store), page=False)
        calibrate(Workspace(unconditional, SPACE, store))
        measure(
            Workspace(unconditional, SPACE, store),
            num_configs=1,
            num_images=4,
            batch_size=size,
            engine=Serial(),
        )
        (full,) = Store(store, unconditional.name).path("pictures").glob("full-*.safetensors")
        pictures.append(read_full(full).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # batches round otherwise
    assert len({picture.tobytes() for picture in pictures[0]}) == 4  # each has noise of its own


def test_too_few_pictures_are_an_error_and_leave_no_file(
    unconditional: Model, tmp_path: Path
) -> None:
    one = dataclasses.replace(unconditional, call={"batch_size": 1})
    trace(Workspace(one, root=tmp_path), page=False)
    calibrate(Workspace(one, SPACE, tmp_path))
    with pytest.raises(EvaluationError, match="drew 1 pictures where 4 were asked for"):
        measure(
            Workspace(one, SPACE, tmp_path),
            num_configs=1,
            num_images=4,
            batch_size=4,
            engine=Serial(),
        )
    assert list(Store(tmp_path, one.name).path("").rglob("full-*")) == []
