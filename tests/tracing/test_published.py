"""Published denoisers against published figures."""

from __future__ import annotations

import inspect

import pytest
import yaml
from soak import soaked

from qsdm.graph import Graph, Op, Role, merge_splits
from qsdm.qconfig import QuantConfig, QuantMethod, cost
from qsdm.trace import prepare, reasons
from tests.tracing.published import CONF, model, names, traced

# Qua²SeDiMo (Mills et al., 2025): weight tensors and their bytes in full precision
TENSORS_AND_BYTES = {
    "pixart_alpha": (287, 1_220_456_448),
    "pixart_sigma": (287, 1_220_456_448),
    "hunyuan": (468, 2_999_291_904),
    "sdxl": (794, 5_131_760_640),
    "sd15": (282, 3_436_308_480),
    "dit": (255, 1_433_972_736),
}
# The same: average bits of uniform configurations
METHODS = ("uaq-4", "uaq-3", "kmeans_a-4", "kmeans_a-3", "kmeans_c-4", "kmeans_c-3")
AVG_BITS = {
    "pixart_alpha": (4.0227, 3.0227, 4.0001, 3.0001, 4.1812, 3.0906),
    "hunyuan": (4.0189, 3.0189, 4.0001, 3.0000, 4.1512, 3.0756),
    "sdxl": (4.0187, 3.0187, 4.0001, 3.0000, 4.1498, 3.0749),
    "sd15": (4.0245, 3.0245, 4.0002, 3.0001, 4.1961, 3.0980),
    "dit": (4.0246, 3.0246, 4.0001, 3.0000, 4.1970, 3.0985),
}
# With a weight per input wherever a concatenation feeds it
AVG_BITS_TRACED = {
    ("sdxl", "uaq-4"): 4.0188,
    ("sdxl", "kmeans_c-4"): 4.1504,
    ("sd15", "uaq-4"): 4.0253,
    ("sd15", "kmeans_c-4"): 4.2024,
}
FAST = {"cogvideox", "dit", "pixart_alpha", "sd15", "sd35_medium", "sdxl", "wan"}
PIPELINES = {
    "cogvideox": "CogVideoXPipeline",
    "dit": "DiTPipeline",
    "hunyuan": "HunyuanDiTPipeline",
    "hunyuan_video": "HunyuanVideoPipeline",
    "kandinsky22": "KandinskyV22Pipeline",
    "lumina2": "Lumina2Pipeline",
    "pixart_alpha": "PixArtAlphaPipeline",
    "pixart_sigma": "PixArtSigmaPipeline",
    "qwen_image": "QwenImagePipeline",
    "sana": "SanaPipeline",
    "sd15": "StableDiffusionPipeline",
    "sd21": "StableDiffusionPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "wan": "WanPipeline",
}


def uniform_bits(graph: Graph, method: str, full_bits: int) -> float:
    qconfig = QuantConfig(
        graph.denoiser, {weight.name: QuantMethod.parse(method) for weight in graph.weights}
    )
    return round(cost.avg_bits(graph, qconfig, full_bits), 4)


@pytest.mark.parametrize("name", TENSORS_AND_BYTES)
def test_weight_tensors_and_bytes_are_the_papers(name: str) -> None:
    graph, _ = traced(name)
    tensors = {
        parameter for weight in graph.weights for parameter in (weight.parameter, *weight.ties)
    }
    assert (len(tensors), graph.num_values * model(name).full_bits // 8) == TENSORS_AND_BYTES[name]


@pytest.mark.parametrize("name", AVG_BITS)
def test_average_bits_of_the_papers_space_are_the_papers(name: str) -> None:
    splits = yaml.safe_load((CONF / "space" / "paper.yaml").read_text())["splits"]
    graph = merge_splits(traced(name)[0], splits)
    assert (
        tuple(uniform_bits(graph, method, model(name).full_bits) for method in METHODS)
        == AVG_BITS[name]
    )


@pytest.mark.parametrize(("name", "method"), AVG_BITS_TRACED)
def test_average_bits_with_every_traced_split(name: str, method: str) -> None:
    assert (
        uniform_bits(traced(name)[0], method, model(name).full_bits)
        == AVG_BITS_TRACED[name, method]
    )


@pytest.mark.parametrize("name", names())
def test_every_figure_has_a_source(name: str) -> None:
    figures = {"config", "steps_and_guidance", "num_params", "full_bits"}
    assert set(model(name).source) == figures | ({"revision"} if model(name).revision else set())


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_steps_and_guidance_are_defaults_of_the_pipeline(name: str) -> None:
    import diffusers

    takes = inspect.signature(getattr(diffusers, PIPELINES[name]).__call__).parameters
    assert (
        model(name).guidance
        == takes["true_cfg_scale" if name == "qwen_image" else "guidance_scale"].default
    )
    if name == "dit":  # its steps are of the paper's scripts, and its source says so
        assert "dit_eval_random.py" in model(name).source["steps_and_guidance"]
        return
    assert (
        model(name).source["steps_and_guidance"].startswith("defaults of the pipeline in diffusers")
    )
    assert model(name).steps == takes["num_inference_steps"].default


@pytest.mark.parametrize(
    ("name", "num_split"), [("sdxl", 18), ("sd15", 24), ("dit", 0), ("pixart_alpha", 0)]
)
def test_number_of_split_weights(name: str, num_split: int) -> None:
    split = [weight.name for weight in traced(name)[0].weights if "#" in weight.name]
    assert len({text.partition("#")[0] for text in split}) == num_split
    assert all(".resnets." in text for text in split)


def test_hunyuans_long_skips_are_split_and_its_pooler_is_named() -> None:
    graph, missing = traced("hunyuan")
    assert len({w.name.partition("#")[0] for w in graph.weights if ".skip_linear#" in w.name}) == 19
    assert set(missing) == {f"time_extra_emb.pooler.{x}_proj" for x in "qkvc"}
    assert [node.name for node in graph.nodes if node.op == Op.MHA] == ["time_extra_emb.pooler.mha"]
    (reason,) = reasons(graph, missing)
    assert "pooler.c_proj" in reason
    assert reason.endswith(": fused into time_extra_emb.pooler.mha, left out")
    assert reasons(graph, ["elsewhere.proj"]) == [
        "elsewhere.proj: an input is missing, or the forward never uses them"
    ]


def test_macs_of_dit_are_its_papers() -> None:
    """DiT (Peebles and Xie, 2023), table 4 and appendix: 118.64 G at 256 px, 524.60 G at 512 px."""
    from qsdm import tracing

    macs = sum(node.macs for node in traced("dit")[0].nodes)
    assert macs == pytest.approx(524.60e9, rel=1e-3)
    smaller = model("dit")
    smaller.config["sample_size"] = 32
    module, inputs, _ = prepare(smaller)
    macs = sum(node.macs for node in tracing.trace(module, inputs, "dit").nodes)
    assert macs == pytest.approx(118.64e9, rel=1e-3)


def test_dits_timestep_embedders_are_one_decision_each() -> None:
    graph, _ = traced("dit")
    assert len(graph.weights) == 201
    tied = [weight for weight in graph.weights if weight.ties]
    assert [len(weight.ties) for weight in tied] == [27, 27]
    assert next(node.name for node in graph.nodes if node.weight == tied[0]) == tied[0].name


@pytest.mark.parametrize(
    ("name", "role", "count"),
    [
        ("pixart_alpha", Role.ATTN_Q, 56),
        ("dit", Role.ADALN, 29),
        ("sdxl", Role.ATTN_OUT, 140),
        ("sdxl", Role.COND_PROJ, 17),
        ("sd15", Role.FF_IN, 16),
        ("hunyuan", Role.SKIP_PROJ, 38),
    ],
)
def test_roles_of_published_denoisers(name: str, role: Role, count: int) -> None:
    assert sum(node.role == role for node in traced(name)[0].nodes) == count


@pytest.mark.parametrize("name", ["pixart_alpha", "sdxl", "sd15", "dit"])
def test_all_weights_are_covered(name: str) -> None:
    assert traced(name)[1] == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", soaked([name for name in names() if name != "hunyuan"], FAST))
def test_every_published_denoiser_is_covered_and_described(name: str) -> None:
    graph, missing = traced(name)
    assert missing == ()
    assert all(
        node.role and node.stage and node.macs for node in graph.nodes if node.weight is not None
    )
    assert model(name).num_params is not None
