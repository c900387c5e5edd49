"""Laws of drawing and scoring: one noise for all configurations, nothing left of the one before."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from qsdm import tracing
from qsdm.denoisers import Model, ModelError, computed_in, prompts_of
from qsdm.graph import Graph
from qsdm.measurement import drawer
from qsdm.measurement.drawer import Drawer, remembered
from qsdm.measurement.evaluator import Evaluator
from qsdm.measurement.protocol import (
    drawing_digest,
    prompts_digest,
    protocol_of,
    seed_of,
)
from qsdm.outcome import EvaluationError, Protocol
from qsdm.prompts import Captions, Label, PromptsError
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.trace import prepare

NUM_IMAGES = 5


class Coarse:
    """Stands for packed weights: rounds every value to a multiple of the row's largest, by bits."""

    def __init__(self, module: torch.nn.Module, graph: Graph) -> None:
        self.module, self.weights = module, {weight.name: weight for weight in graph.weights}
        self.broken = ""

    def dequantize(
        self, name: str, method: QuantMethod, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        weight = self.weights[name]
        values = self.original[weight.parameter][:, weight.start : weight.start + weight.shape[1]]
        step = values.abs().flatten(1).amax(1).clamp_min(1e-8) / 2 ** (method.bits - 1)
        step = step.view(-1, *[1] * (values.ndim - 1))
        rounded = (values / step).round() * step
        rounded = torch.full_like(rounded, torch.nan) if name == self.broken else rounded
        return rounded if out is None else out.copy_(rounded)

    @property
    def original(self) -> dict[str, torch.Tensor]:
        return self._original

    def remember(self) -> Coarse:
        self._original = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        return self


@pytest.fixture(scope="module")
def graph(tiny_model: Model) -> Graph:
    module, inputs, _ = prepare(tiny_model)
    return tracing.trace(module, inputs, tiny_model.name)


@pytest.fixture(scope="module")
def protocol(tiny_model: Model) -> Protocol:
    return protocol_of(tiny_model, prompts_of(tiny_model), 0, NUM_IMAGES)


@pytest.fixture(scope="module")
def evaluator(tiny_model: Model, graph: Graph, protocol: Protocol) -> Evaluator:
    return ready(tiny_model, graph, protocol, batch_size=3)


def ready(model: Model, graph: Graph, protocol: Protocol, batch_size: int) -> Evaluator:
    from qsdm.denoisers import load_pipeline

    packed = Coarse(load_pipeline(model).unet, graph).remember()
    drawing = Drawer(model, graph, packed, batch_size)
    return Evaluator(drawing, model.metrics, protocol, prompts_of(model))


def every(graph: Graph, bits: int) -> QuantConfig:
    return QuantConfig("tiny", {weight.name: QuantMethod("uaq", bits) for weight in graph.weights})


FULL = QuantConfig("tiny", {})


def levels(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_two_seed_sets_share_no_seed() -> None:
    seeds = {seed_of(seed_set, i) for seed_set in range(3) for i in range(500)}
    assert len(seeds) == 1500
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_draws_what_the_pipeline_draws(evaluator: Evaluator, tiny_model: Model) -> None:
    from qsdm.denoisers import load_pipeline

    direct = load_pipeline(tiny_model)(
        prompts_of(tiny_model)[:3],
        num_inference_steps=tiny_model.steps,
        guidance_scale=tiny_model.guidance,
        height=tiny_model.resolution_px,
        width=tiny_model.resolution_px,
        generator=[torch.Generator().manual_seed(seed_of(0, i)) for i in range(3)],
        output_type="np",
    ).images
    drawn = evaluator.pictures(FULL, 0, 3)
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn, (direct * 255).round().astype(np.uint8))


def test_batches_and_parts_change_rounding_only(evaluator: Evaluator) -> None:
    """Batches of 3 against one picture at a time, in another order."""
    whole = evaluator.pictures(FULL)
    single = np.concatenate(
        [evaluator.pictures(FULL, i, i + 1) for i in reversed(range(NUM_IMAGES))][::-1]
    )
    assert whole.shape == (NUM_IMAGES, 16, 16, 3)
    assert levels(whole, single) <= 1
    assert levels(whole[0], whole[1]) > 10


def test_a_configuration_leaves_nothing_behind(evaluator: Evaluator, graph: Graph) -> None:
    full, coarse = evaluator.pictures(FULL), evaluator.pictures(every(graph, 2))
    fine = evaluator.pictures(every(graph, 6))
    assert np.array_equal(evaluator.pictures(every(graph, 2)), coarse)
    assert np.array_equal(evaluator.pictures(FULL), full)
    assert levels(fine, full) < levels(coarse, full)


def test_switching_writes_what_changes(evaluator: Evaluator, graph: Graph) -> None:
    switch = evaluator.drawer.switch
    switch(every(graph, 4))
    other = every(graph, 4).methods | {graph.weights[0].name: QuantMethod("uaq", 3)}
    assert switch(QuantConfig("tiny", other)) == 1
    assert switch(QuantConfig("tiny", other)) == 0


def test_other_seeds_draw_other_pictures(evaluator: Evaluator, tiny_model: Model) -> None:
    prompts = prompts_of(tiny_model)
    protocol = protocol_of(tiny_model, prompts, 1, 2)
    other = Evaluator(evaluator.drawer, tiny_model.metrics, protocol, prompts)
    assert len(other.pictures(FULL)) == 2
    assert levels(other.pictures(FULL), evaluator.pictures(FULL, 0, 2)) > 10


def test_an_outcome_has_every_metric_and_its_halves(
    evaluator: Evaluator, graph: Graph, protocol: Protocol
) -> None:
    outcome = evaluator.outcome(every(graph, 3))
    assert outcome.protocol == protocol.digest
    assert set(outcome.metrics) == set(outcome.halves) == {"fd_lite0", "psnr"}
    assert len(outcome.halves["psnr"]) == 16
    for first, second in outcome.halves["psnr"]:
        assert (3 * first + 2 * second) / NUM_IMAGES == pytest.approx(
            outcome.metrics["psnr"], rel=1e-5
        )
    assert len(set(outcome.halves["psnr"])) > 1
    assert len(outcome.provenance["pictures"]) == 64
    assert outcome.num_images == NUM_IMAGES
    full = evaluator.outcome(FULL)
    assert full.metrics["psnr"] is None
    assert "psnr" not in full.halves


def test_pictures_that_are_not_finite_are_refused(
    tiny_model: Model, graph: Graph, protocol: Protocol
) -> None:
    evaluator = ready(tiny_model, graph, protocol, batch_size=3)
    evaluator.drawer._switch.dequantize.__self__.broken = graph.weights[0].name
    with pytest.raises(
        EvaluationError, match=r"picture 0 of configuration \w{12} is not finite: nothing is stored"
    ):
        evaluator.outcome(every(graph, 3))


def test_a_metric_that_is_not_finite_is_refused(evaluator: Evaluator, graph: Graph) -> None:
    class Infinite:
        name, version, larger_is_better = "infinite", "1", True

        def features(
            self, images: np.ndarray, captions: list[str], full: np.ndarray | None
        ) -> np.ndarray:
            return np.zeros((len(images), 1), dtype=np.float32)

        def reduce(self, features: np.ndarray) -> float:
            return float("inf")

    metrics = {"infinite": Infinite()}
    broken = Evaluator(evaluator.drawer, metrics, evaluator.protocol, evaluator.prompts)
    with pytest.raises(
        EvaluationError, match=r"infinite of configuration \w+ is inf: it is not stored"
    ):
        broken.outcome(FULL)


def test_bfloat16_draws_almost_the_same(
    tiny_model: Model, graph: Graph, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        drawer, "computed_in", lambda dtype: getattr(torch, dtype)
    )  # whatever the processor
    model = dataclasses.replace(tiny_model, dtype="bfloat16")
    prompts = prompts_of(model)
    protocol = protocol_of(model, prompts, 0, 3)
    assert drawing_digest(protocol) != drawing_digest(
        dataclasses.replace(protocol, dtype="float32")
    )
    half = ready(model, graph, protocol, batch_size=3)
    assert half.drawer.denoiser.conv_in.weight.dtype == torch.bfloat16
    assert half.drawer.pipeline.vae.dtype == torch.float32
    full = evaluator.pictures(FULL, 0, 3)
    difference = np.abs(half.pictures(FULL).astype(int) - full.astype(int)).mean()
    assert 0 < difference < 3
    coarse = half.pictures(every(graph, 2))
    assert np.abs(coarse.astype(int) - full.astype(int)).mean() > 2 * difference


@pytest.mark.parametrize("has", [True, False])
def test_float32_takes_the_place_of_what_a_processor_lacks(
    has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    assert computed_in("bfloat16") == (torch.bfloat16 if has else torch.float32)
    assert computed_in("float32") == computed_in("float16") == torch.float32


def test_a_protocol_names_all_that_matters(tiny_model: Model, protocol: Protocol) -> None:
    def other(**changes: object) -> Protocol:
        model = dataclasses.replace(tiny_model, **changes)
        return protocol_of(model, prompts_of(tiny_model), 0, NUM_IMAGES)

    assert other() == protocol
    changes: list[dict] = [
        {"steps": 3},
        {"guidance": 3.0},
        {"dtype": "bfloat16"},
        {"call": {"eta": 0.5}},
    ]
    changes += [{"sampler": "DDIMScheduler"}]
    digests = {other(**change).digest for change in changes} | {protocol.digest}
    prompts = prompts_of(tiny_model)
    digests |= {protocol_of(tiny_model, prompts, seed, n).digest for seed, n in ((1, 5), (0, 4))}
    digests |= {protocol_of(tiny_model, prompts[::-1], 0, NUM_IMAGES).digest}
    assert len(digests) == 9
    other_fits = dataclasses.replace(protocol, quantizer_version="0")
    assert drawing_digest(other_fits) == drawing_digest(protocol)  # of full precision


def test_prompts_that_are_none_are_refused(tiny_model: Model, tmp_path) -> None:
    with pytest.raises(ModelError, match=r"tiny has no prompts: add prompts=NAME"):
        prompts_of(dataclasses.replace(tiny_model, prompts=None))
    for given in (str(tmp_path / "missing.json"), Captions(str(tmp_path / "missing.json"))):
        with pytest.raises(PromptsError, match="no prompts in"):
            prompts_of(dataclasses.replace(tiny_model, prompts=given))


def test_embeddings_are_remembered_as_long_as_there_is_room() -> None:
    calls: list[str] = []

    def encode(prompt: list[str], device: str = "cpu") -> tuple[torch.Tensor, None]:
        calls.extend(prompt)
        return torch.full((1, 4), float(len(prompt[0]))), None  # 16 bytes

    once = remembered(encode, limit_bytes=40)
    for _ in range(3):
        for caption in ("a", "bb", "ccc"):
            assert once([caption], device="cpu")[0][0, 0] == len(caption)
    assert (calls.count("a"), calls.count("bb"), calls.count("ccc")) == (1, 1, 3)
    assert once(["a"], "cuda") is not once(["a"], "cpu"), "other options are another question"


def test_classes_of_one_name_are_two_prompts() -> None:
    crane = [[Label(134, "crane")], [Label(517, "crane")], ["crane"]]
    assert len({prompts_digest(prompts) for prompts in crane}) == 3
