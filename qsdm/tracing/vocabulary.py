"""What a forward's parameters hold, by name: the vocabulary of diffusers' signatures and configs.

A rule says what a parameter of a certain name holds, and which config field gives its width. The
value of a parameter without a rule is guessed from the axes that the code shows (`axes`) or from
its name.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qsdm.tracing import axes


def floats(*shape: int) -> Tensor:
    """Create a float32 tensor: ones, or uninitialized memory if it has more than 4096 values.

    Args:
        shape: sizes of its axes.

    Returns:
        The tensor.
    """
    return torch.ones(shape) if math.prod(shape) <= 4096 else torch.empty(shape)


@dataclass(frozen=True, slots=True)
class Shapes:
    """Sizes of inputs, as far as config and code give them.

    Attributes:
        config: the denoiser's config.
        axes: names of the axes of arguments, where the code shows them.
        layout: axes of the first argument, one letter each: B batch, C channels, F frames,
            H height, W width, N image tokens, L audio samples.
        channels: of the latents.
        height: of the latents.
        width: of the latents.
        frames: of a video.
        tokens: of the text.
    """

    config: Mapping[str, Any]
    axes: Mapping[str, axes.Axes]
    layout: str
    channels: int
    height: int
    width: int
    frames: int
    tokens: int

    @staticmethod
    def of(module: nn.Module) -> Shapes:
        """Read the sizes of a denoiser's inputs from its config, signature and class name."""
        config = dict(getattr(module, "config", {}))
        name = type(module).__name__
        parameters = inspect.signature(type(module).forward).parameters
        if {"img_ids", "img_shapes"} & set(parameters) or {"num_frames", "height"} <= set(
            parameters
        ):
            layout = "BNC"
        elif re.search("1D|Audio|Music", name):
            layout = "BCL"
        elif re.search("CogVideoX|UNetSpatioTemporal", name):
            layout = "BFCHW"
        elif re.search("3D|Video|Motion|I2VGen|Cosmos|Allegro|Latte", name):
            layout = "BCFHW"
        else:
            layout = "BCHW"
        size = first(config, "sample_size", default=32)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        if config.get("sample_height") and config.get("sample_width"):
            height, width = config["sample_height"], config["sample_width"]
        frames = first(config, "sample_frames", "num_frames", default=9)
        if layout == "BFCHW" and "temporal_compression_ratio" in config:
            frames = (frames - 1) // config["temporal_compression_ratio"] + 1
        channels = first(
            config,
            "in_channels",
            "latent_channels",
            "in_visual_dim",
            "in_dim",
            "embedding_dim",
            default=16,
        )
        tokens = first(
            config,
            "text_len",
            "max_text_seq_length",
            "max_sequence_length",
            "num_embeddings",
            default=64,
        )
        in_code = axes.of_forward(type(module).forward)
        return Shapes(
            config, in_code, layout, channels, int(height), int(width), int(frames), int(tokens)
        )

    def around(self, main: Tensor) -> Shapes:
        """The same with the sizes of a first argument, ``main``."""
        layout = (
            self.layout
            if main.dim() == len(self.layout)
            else {4: "BCHW", 5: "BCFHW"}.get(main.dim(), "")
        )
        by_axis = dict(zip(layout, main.shape, strict=True)) if layout else {}
        sizes: dict[str, Any] = {}
        if "H" in by_axis:
            sizes = {
                "layout": layout,
                "height": by_axis["H"],
                "width": by_axis["W"],
                "frames": by_axis.get("F", self.frames),
            }
        elif layout == "BNC":
            edge = math.isqrt(main.shape[1])
            sizes = {"height": 2 * edge, "width": 2 * main.shape[1] // max(1, edge)}
        return dataclasses.replace(self, **sizes)

    @property
    def patches(self) -> int:
        """Number of image tokens, each of 2 x 2 latents."""
        return (self.height // 2) * (self.width // 2)

    def main(self, parameter: inspect.Parameter) -> Any:
        """A value for the first argument."""
        C, H, W = self.channels, self.height, self.width
        if parameter.name.endswith("_ids"):  # of image tokens
            return torch.zeros(1, H, W, dtype=torch.int64)
        if "list" in str(parameter.annotation).lower():
            return [floats(C, 1, H, W)]
        sizes = {"B": 1, "C": C, "F": self.frames, "H": H, "W": W, "N": self.patches, "L": 256}
        return floats(*(sizes[letter] for letter in self.layout))

    def size(self, axis: str) -> int:
        """The size of an axis by its name: a config field, a number, or a usual name."""
        if isinstance(value := self.config.get(axis), int):
            return max(1, value)
        if axis.isdigit():
            return int(axis)
        sizes = {
            "B": 1,
            "C": self.channels,
            "F": self.frames,
            "H": self.height,
            "W": self.width,
            "N": self.tokens,
        }
        return sizes.get(axes.layout((axis,)) or "", 2)


def first(config: Mapping[str, Any], *names: str, default: Any = None) -> Any:
    """Look up the first config field that exists and is not None.

    Args:
        config: the denoiser's config.
        names: of the fields, in order of preference.
        default: value if there is none.

    Returns:
        The field's value; of a list of one entry, the entry.
    """
    for name in names:
        value = config.get(name)
        if value is not None:
            return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    return default


# Fields that give the width of text embeddings, the most specific ones first
_TEXT_WIDTH = """
    encoder_hid_dim caption_channels caption_projection_input_dim text_embed_dim joint_attention_dim
    text_dim cap_feat_dim context_in_dim in_text_dim text_hidden_size encoder_hidden_size
    cross_attention_dim cross_attention_input_dim text_in_dim text_hidden_dim dit_text_dim
    cond_token_dim llm_features_dim condition_dim
""".split()  # noqa: SIM905
_ROPE_AXES = ("axes_dims_rope", "rope_axes_dim", "axes_dims")
_POOLED_WIDTH = """
    pooled_projection_dim text_emb_dim clip_text_pooled_in_channels global_states_input_dim
    in_text_dim2 global_cond_dim cond_embed_dim
""".split()  # noqa: SIM905


def _time(_s: Shapes, p: inspect.Parameter) -> Tensor:
    return (
        torch.full((1,), 500, dtype=torch.int64)
        if "Long" in str(p.annotation)
        else torch.full((1,), 500.0)
    )


def _guidance(s: Shapes, _p: inspect.Parameter) -> Tensor | None:
    return (
        torch.full((1,), 3500.0) if first(s.config, "guidance_embeds", "guidance_embed") else None
    )


def _classes(s: Shapes, _p: inspect.Parameter) -> Tensor | None:
    return (
        torch.zeros(1, dtype=torch.int64)
        if first(s.config, "num_embeds_ada_norm", "num_class_embeds", "class_embed_type")
        else None
    )


def _added(s: Shapes, _p: inspect.Parameter) -> dict[str, Any]:
    c, kind = s.config, s.config.get("addition_embed_type")
    if kind == "text_time":
        num_ids = (
            6
            if c["projection_class_embeddings_input_dim"] > 6 * c["addition_time_embed_dim"]
            else 5
        )
        width = c["projection_class_embeddings_input_dim"] - num_ids * c["addition_time_embed_dim"]
        if width % 128:  # the refiner: five ids instead of six
            num_ids, width = (
                5,
                c["projection_class_embeddings_input_dim"] - 5 * c["addition_time_embed_dim"],
            )
        return {"text_embeds": floats(1, width), "time_ids": floats(1, num_ids)}
    if kind in ("image", "image_hint") or c.get("encoder_hid_dim_type") == "image_proj":
        hint = {"hint": floats(1, 3, s.height * 8, s.width * 8)} if kind == "image_hint" else {}
        return {"image_embeds": floats(1, first(c, "encoder_hid_dim", default=1280)), **hint}
    if kind == "text_image":
        return {"image_embeds": floats(1, 768), "text_embeds": floats(1, 768)}
    conditions = c.get("use_additional_conditions")
    if conditions is None:  # PixArt's own default
        conditions = c.get("sample_size") == 128
    return {
        "resolution": floats(1, 2) if conditions else None,
        "aspect_ratio": floats(1, 1) if conditions else None,
    }


def _ids(s: Shapes, p: inspect.Parameter) -> Tensor:
    axes = first(s.config, *_ROPE_AXES, default=(0, 0, 0))
    return torch.zeros(s.tokens if p.name.startswith("txt") else s.patches, len(axes))


def _rotary(s: Shapes, p: inspect.Parameter) -> tuple[Tensor, Tensor] | None:
    c = s.config
    if p.default is None and c.get("use_rotary_positional_embeddings") is False:
        return None
    patch = max(1, int(first(c, "patch_size", default=1)))
    tokens = (s.height // patch) * (s.width // patch) * (s.frames if "F" in s.layout else 1)
    width = first(c, "attention_head_dim", "head_dim", default=64)
    return floats(tokens, width), floats(tokens, width)


def _text_mask(s: Shapes, p: inspect.Parameter) -> Tensor | None:
    is_optional = p.default is not inspect.Parameter.empty
    if is_optional and not p.name.startswith("text_embedding_mask"):  # Hunyuan-DiT needs its masks
        return None
    tokens = first(s.config, "text_len_t5", default=s.tokens) if p.name.endswith("t5") else s.tokens
    return torch.ones(1, tokens, dtype=torch.bool if "Bool" in str(p.annotation) else torch.int64)


def _image_text(s: Shapes, p: inspect.Parameter) -> Tensor | None:
    width = first(s.config, "image_dim", "image_embed_dim", "image_proj_dim")
    return floats(1, 257, width) if width or p.default is inspect.Parameter.empty else None


def _pooled(s: Shapes, p: inspect.Parameter) -> Tensor | None:
    width = first(s.config, *_POOLED_WIDTH)
    if width is None:
        return None
    return floats(1, 1, width) if "clip" in p.name else floats(1, width)


def _text(s: Shapes, p: inspect.Parameter) -> Any:
    tokens, width = s.tokens, None
    if p.name.endswith("t5"):
        tokens, width = (
            first(s.config, "text_len_t5", default=tokens),
            first(s.config, "cross_attention_dim_t5", "text_embed_dim_t5"),
        )
    elif p.name.endswith("_2"):
        width = first(s.config, "text_embed_2_dim")
    elif s.config.get("encoder_hid_dim_type") == "image_proj":
        return None
    width = width or first(s.config, *_TEXT_WIDTH)
    if not isinstance(width, int):
        return floats(1, tokens, 64) if p.default is inspect.Parameter.empty else None
    return (
        [floats(tokens, width)] if "list" in str(p.annotation).lower() else floats(1, tokens, width)
    )


Rule = Callable[[Shapes, inspect.Parameter], Any]
_RULES: tuple[tuple[str, Rule], ...] = (
    (r"t|timesteps?|timestep_ratio|r_timestep|sigma|noise_level", _time),
    (r"guidance", _guidance),
    (r"class_labels?", _classes),
    (r"added_cond_kwargs", _added),
    (r"added_time_ids", lambda _s, _p: floats(1, 3)),
    (r"(img|txt|image)_ids", _ids),
    (r"img_shapes", lambda s, _p: [[(1, s.height // 2, s.width // 2)]]),
    (r"txt_seq_lens", lambda s, _p: [s.tokens]),
    (r"text_lens", lambda s, _p: torch.full((1,), s.tokens, dtype=torch.int64)),
    (r"image_rotary_emb|video_rotary_emb|rotary_emb(edding)?", _rotary),
    (r"num_frames", lambda _s, _p: 1),
    (r"height", lambda s, _p: s.height // 2),
    (r"width", lambda s, _p: s.width // 2),
    (
        r"image_meta_size",
        lambda s, _p: (
            torch.full((1, 6), 1024.0)
            if s.config.get("use_style_cond_and_image_meta_size", True)
            else None
        ),
    ),
    (
        r"style",
        lambda s, _p: (
            torch.zeros(1, dtype=torch.int64)
            if s.config.get("use_style_cond_and_image_meta_size", True)
            else None
        ),
    ),
    (r"(original|target)_size|crop_coords", lambda _s, _p: torch.full((1, 2), 1024.0)),
    (r"padding_mask", lambda s, _p: floats(1, 1, s.height, s.width)),
    (r".*(encoder|text|cap|prompt).*mask.*", _text_mask),
    (r".*(pooled|clip_text_pooled).*|text_embeds|global_hidden_states", _pooled),
    (r".*encoder_hidden_states_image.*|image_emb.*", _image_text),
    (
        r"encoder_hidden_states(_\w+)?|cap_feats|txt|clip_text|prompt_embeds|text_embedding"
        r"|text_bth",
        _text,
    ),
)


def rule_of(name: str) -> Rule | None:
    """Look up the rule for a parameter.

    Args:
        name: the parameter's name.

    Returns:
        A function that builds its value from `Shapes` and the parameter; None without a rule.
    """
    return next((rule for pattern, rule in _RULES if re.fullmatch(pattern, name)), None)


_INTEGERS = re.compile("ids|ind(ex|ices)|labels?$|tokens$|tags$|indicator")


def guess(shapes: Shapes, parameter: inspect.Parameter) -> Any:
    """Guess the value of a parameter that has no rule, by its axes, name and type.

    Args:
        shapes: sizes of the inputs.
        parameter: of the forward's signature.

    Returns:
        The value; None for a type that cannot be guessed.
    """
    name, kind = parameter.name, str(parameter.annotation)
    if "Tensor" not in kind and parameter.annotation is not inspect.Parameter.empty:
        return {"int": 1, "float": 1.0, "bool": True}.get(
            kind.removeprefix("<class '").removesuffix("'>")
        )
    if (axis_names := shapes.axes.get(name)) is not None:
        shape = [shapes.size(axis) for axis in axis_names]
        if "mask" in name or _INTEGERS.search(name):
            return torch.full(shape, int("mask" in name), dtype=torch.int64)
        return floats(*shape)
    if re.search("hidden_states|latent|pixel|sample", name) and "encoder" not in name:
        return shapes.main(parameter)
    if name.endswith("_ids") and first(shapes.config, *_ROPE_AXES):
        return _ids(shapes, parameter)
    if "mask" in name:
        return torch.ones(1, shapes.tokens, dtype=torch.int64)
    if _INTEGERS.search(name):
        return torch.zeros(1, shapes.tokens, dtype=torch.int64)
    if re.search("time|fps|sigma", name):
        return torch.full((1,), 16.0)
    width = first(shapes.config, *_TEXT_WIDTH, "embedding_dim", default=64)
    return floats(1, width) if re.search("embeddings?$", name) else floats(1, shapes.tokens, width)
