"""Inputs that neither signature nor config tell: mended by what the forward complains of, or known
by class.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from torch import nn

from qsdm import tracing
from qsdm.tracing import TraceError, inputs, skeleton, trace_unaided


class Odd(nn.Module):
    """A denoiser whose widths no config tells."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(7, 32, 3, padding=1)
        self.text = nn.Linear(48, 32)
        self.time = nn.Linear(1, 32)
        self.norm = nn.LayerNorm(20)
        self.extra = nn.Linear(20, 32)
        self.labels = nn.Embedding(5, 32)
        self.out = nn.Linear(32, 4)

    # Without annotations, by which inputs could be built
    def forward(
        self,
        sample,
        timestep,
        encoder_hidden_states,
        notes,
        kinds,
        hint=None,
        return_dict=True,
    ):
        batch, frames = timestep.shape
        timestep = timestep.view(batch, frames)
        x = self.conv(sample).flatten(2).mT
        x = (
            x
            + self.text(encoder_hidden_states).mean(1, keepdim=True)
            + self.time(timestep[..., None])[:, :1]
        )
        x = (
            x
            + self.extra(self.norm(notes)).mean(1, keepdim=True)
            + self.labels(kinds).sum(1, keepdim=True)
        )
        x = x + hint.mean()
        return (self.out(x),)


def test_shapes_follow_the_layers_that_take_them() -> None:
    graph, how = trace_unaided(Odd(), {}, "odd")
    assert not tracing.uncovered(Odd(), graph)
    assert how.startswith("repaired: ")
    for place in ("sample", "encoder_hidden_states", "timestep", "notes", "kinds", "hint"):
        assert place in how


def test_what_was_given_is_not_changed() -> None:
    with pytest.raises(TraceError, match=r"does not run .*linear in text with \[1, 5, 9\]"):
        trace_unaided(
            Odd(),
            {"encoder_hidden_states": [1, 5, 9], "sample": [1, 7, 8, 8], "timestep": [1, 2]},
            "odd",
        )


def test_what_cannot_be_mended_is_told_by_its_first_failure() -> None:
    class Broken(Odd):
        def forward(self, sample, timestep, return_dict=True) -> None:
            raise RuntimeError("a kernel of its own")

    with pytest.raises(TraceError, match="a kernel of its own"):
        trace_unaided(Broken(), {}, "broken")


OVERRIDES = sorted((Path(inputs.__file__).parent / "overrides").glob("*.yaml"))


@pytest.mark.parametrize("path", OVERRIDES, ids=lambda path: path.stem)
def test_overrides_are_short_and_name_arguments_of_their_class(path: Path) -> None:
    import inspect

    from diffusers.models import transformers, unets

    kind = getattr(transformers, path.stem, None) or getattr(unets, path.stem, None)
    if kind is None:
        pytest.skip(f"this diffusers has no {path.stem}")
    takes = inspect.signature(kind.forward).parameters
    assert len(path.read_text().splitlines()) <= 10
    assert set(yaml.safe_load(path.read_text())) <= set(takes)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("PriorTransformer", {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 8}),
        ("UVit2DModel", {"num_hidden_layers": 1}),
        ("Kandinsky5Transformer3DModel", {"num_text_blocks": 1, "num_visual_blocks": 1}),
        ("I2VGenXLUNet", {"layers_per_block": 1}),
        ("LTX2VideoTransformer3DModel", {"num_layers": 1}),
        ("WanTransformer3DModel", {"num_layers": 1}),
        ("ZImageTransformer2DModel", {"n_layers": 1}),
        ("StableAudioDiTModel", {"num_layers": 1}),
    ],
)
def test_classes_of_all_kinds_are_traced_whole(name: str, config: dict) -> None:
    from diffusers.models import transformers, unets

    module = skeleton.build(getattr(transformers, name, None) or getattr(unets, name), config)
    graph, _ = trace_unaided(module, {}, name)
    assert not tracing.uncovered(module, graph)
    assert all(
        node.weight is None or not node.dead or name.startswith("LTX2") for node in graph.nodes
    )


def test_a_mixture_of_experts_visits_all_of_them() -> None:
    import diffusers

    config = {
        "num_layers": 1,
        "num_single_layers": 1,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
    }
    config |= {
        "caption_channels": [64, 64],
        "llama_layers": [0, 1],
        "num_attention_heads": 2,
        "num_routed_experts": 4,
    }
    config |= {"axes_dims_rope": [64, 32, 32]}
    module = skeleton.build(diffusers.HiDreamImageTransformer2DModel, config)
    overrides = {
        "encoder_hidden_states_t5": [1, 8, 64],
        "encoder_hidden_states_llama3": [2, 1, 8, 64],
    }
    graph, _ = trace_unaided(module, overrides, "moe")
    experts = set(re.findall(r"experts\.(\d)", " ".join(node.name for node in graph.nodes)))
    assert experts == {"0", "1", "2", "3"}
