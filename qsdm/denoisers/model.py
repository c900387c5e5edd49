"""A model, as one entry of ``conf/model`` describes it: what is loaded, and how it draws."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.denoisers import single_file
from qsdm.prompts import Prompts
from qsdm.store import ZOO
from qsdm.text import require

DEFAULT_COMPONENTS = ("unet", "transformer")
_TEXT = (str, type(None))
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    **dict.fromkeys(
        ("config", "load", "call", "inputs", "metrics", "source"),
        ("names with values, as {a: 1}", (Mapping,)),
    ),
    **dict.fromkeys(("revision", "exclude", "sampler"), ("a text, in quotes if need be", _TEXT)),
    **dict.fromkeys(("resolution_px", "steps", "frames"), ("a whole number", (Integral,))),
    "guidance": ("a number", (Real,)),
    "tied": ("a list, as [a, b]", (Sequence,)),
}
"""What each field must be: commands give those of ``model=any`` without looking at their types."""
DTYPES = ("float32", "float16", "bfloat16", "float64")
JOINED = "+"
"""Between the names of several parts of a pipeline, which share one budget."""

if TYPE_CHECKING:
    Component = str
else:  # a command line or a YAML may list parts, which a model joins to one text
    Component = str | Sequence[str]

_DECODERS = ("vae", "vq", "movq")


def is_denoisers_name(component: str) -> bool:
    """Whether pipelines call a denoiser so, as unet, transformer_2 or prior.

    Args:
        component: attribute of a pipeline.
    """
    return not component.startswith(("text_encoder", "image_encoder", *_DECODERS))


def join(components: str | Sequence[str]) -> str:
    """Write the names of parts as one text, in the order in which a picture passes them.

    Args:
        components: of one part, or of several; in a text, joined by ``+``.

    Returns:
        Encoders, denoisers, decoders, as ``text_encoder+unet+vae``.

    Raises:
        ValueError: there is no name, or one occurs twice.

    Example:
        >>> from qsdm.denoisers.model import join
        >>> join(["unet", "vae", "text_encoder"])
        'text_encoder+unet+vae'
    """
    is_list = isinstance(components, Sequence) and not isinstance(components, str)
    names = [str(name) for name in (components if is_list else str(components).split(JOINED))]
    if not names:
        raise ValueError("component lists no part of the pipeline: give one, as [unet,vae]")
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"component lists {twice[0]} twice: give each part of the pipeline once")

    def place(name: str) -> tuple[bool, bool, str]:
        is_decoder = name.startswith(_DECODERS)
        return is_decoder, is_decoder or is_denoisers_name(name), name

    return JOINED.join(sorted(names, key=place))


OF_DENOISER: Mapping[str, Any] = {"config": {}, "inputs": {}, "tied": (), "num_params": None}
"""What an entry of ``conf/model`` says of its denoiser alone, left out."""


def check_kinds(name: str, fields: Mapping[str, Any]) -> None:
    """Refuse fields of a model of another kind than `Model` takes.

    Args:
        name: of the model, for the message.
        fields: by name; some or all.

    Raises:
        ValueError: one is; the message names it.
    """
    for key, (words, kinds) in _KINDS.items():
        value = fields.get(key)
        is_text = isinstance(value, str)
        if key in fields and (not isinstance(value, kinds) or (is_text and kinds is not _TEXT)):
            raise ValueError(f"model {name}: {key} must be {words} (got {value!r})")


@dataclass(frozen=True, slots=True)
class Model:
    """One entry of ``conf/model``.

    Attributes:
        name: of the model; the store keeps its artifacts under this name.
        path: hub id, directory, single file (see `single_file`), or ``zoo`` for a pipeline that
            ships with qsdm.
        denoiser: class in diffusers or transformers, such as UNet2DConditionModel.
        component: attribute of the pipeline that holds the denoiser: unet, transformer,
            transformer_2, prior, ...; or another part in its place: text_encoder, vae (see
            `qsdm.denoisers.with_component`). Several parts share one budget: a list of them is
            joined (see `join`), and ``denoiser`` joins their classes likewise. The name of the
            model ends with it, except for the first two alone, so that artifacts of several parts
            of one pipeline do not mix.
        resolution_px: edge of the square pictures, in px.
        steps: number of the sampler's steps.
        guidance: scale of classifier-free guidance, 0 or more.
        frames: how many frames of a video count as pictures, evenly spaced; all frames of a shorter
            video.
        config: the denoiser's published config, from which it is traced without weights.
        full_bits: precision of the published weights, 16 or 32 bits.
        num_params: number of parameters of the denoiser, checked when it is traced.
        revision: of the hub repository.
        load: further arguments of from_pretrained; for a single file, ``config`` is the pipeline
            that describes it.
        call: further arguments of the pipeline's call.
        inputs: shapes by name that override the inputs built for tracing.
        exclude: regular expression of the paths of modules that are not quantized.
        tied: regular expressions; parameters that match the same one with the same groups hold
            equal values.
        dtype: in which the denoiser computes, in torch's spelling (but see `computed_in`); text
            encoders and VAEs compute in float32.
        sampler: class in diffusers that replaces the pipeline's scheduler and takes over its
            options.
        prompts: what the pictures show; a string is the path of a JSON list of captions, or ``zoo``
            for the list that ships with the model.
        metrics: what is measured by default, by name (see `qsdm.metrics`).
        source: where each of these values comes from.

    Raises:
        ValueError: a value is out of its range; the message names it.

    Example:
        >>> from qsdm.denoisers import Model
        >>> model = Model("tiny", "pipelines/tiny", "UNet2DConditionModel", "unet",
        ...               resolution_px=64, steps=10, guidance=3.0)
        >>> model.full_bits, model.dtype
        (16, 'float32')
    """

    name: str
    path: str
    denoiser: str
    component: Component
    resolution_px: int
    steps: int
    guidance: float
    frames: int = 4
    config: Mapping[str, Any] = field(default_factory=dict)
    full_bits: int = 16
    num_params: int | None = None
    revision: str | None = None
    load: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    exclude: str | None = None
    tied: Sequence[str] = ()
    dtype: str = "float32"
    sampler: str | None = None
    prompts: Prompts | str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_kinds(self.name, {key: getattr(self, key) for key in _KINDS})
        try:
            object.__setattr__(self, "component", join(self.component))
        except ValueError as error:
            raise ValueError(f"model {self.name}: {error}") from error
        if not all(name.isidentifier() for name in self.components):
            raise ValueError(
                f"model {self.name}: component must be a part of the pipeline, such as unet or "
                f"transformer_2 (got {self.component!r})"
            )
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                "wanted a name of letters, digits, '.', '-' and '_', because a folder is "
                f"named after it (got {self.name!r})"
            )
        if self.dtype not in DTYPES:
            raise ValueError(
                f"model {self.name}: dtype must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]} "
                f"(got {self.dtype!r})"
            )
        if self.component not in DEFAULT_COMPONENTS and not self.name.endswith(self._ending):
            object.__setattr__(self, "name", f"{self.name}-{self._ending}")
        require(1, num_params=self.num_params)
        if self.full_bits not in (16, 32):
            raise ValueError(
                f"model {self.name}: full_bits must be 16 or 32 (got {self.full_bits})"
            )
        for key, metric in self.metrics.items():
            if metric is None or isinstance(metric, str | int | float | Mapping | Sequence):
                raise ValueError(
                    f"model {self.name}: metrics.{key} is no metric but {metric!r}: "
                    "give its _target_, or choose metrics=NAME"
                )
        if min(self.steps, self.resolution_px, self.frames) < 1 or self.guidance < 0:
            raise ValueError(
                f"model {self.name}: steps, resolution_px and frames must be positive and guidance "
                f"not negative (got {self.steps}, {self.resolution_px}, {self.frames}, "
                f"{self.guidance})"
            )

    @property
    def file(self) -> Path | None:
        """The checkpoint, if the path names a single file."""
        path = Path(self.path).expanduser()
        return path if path.is_file() else None

    @property
    def components(self) -> tuple[str, ...]:
        """The names of its parts, in the order of a graph: one, unless several share a budget."""
        return tuple(self.component.split(JOINED))

    @property
    def denoisers(self) -> tuple[str, ...]:
        """Those of its components that are denoisers."""
        return tuple(filter(is_denoisers_name, self.components))

    @property
    def parts(self) -> tuple[Model, ...]:
        """The model of each part; of one part, itself.

        What an entry of ``conf/model`` says of its denoiser alone is left out of the others:
        config, inputs, tied parameters and their number.
        """
        if len(self.components) == 1:
            return (self,)
        kinds = self.denoiser.split(JOINED)
        if len(kinds) != len(self.components):
            raise ValueError(
                f"model {self.name}: wanted a class for each of {', '.join(self.components)} (got "
                f"{self.denoiser}): take the model from qsdm.denoisers.with_component"
            )
        return tuple(
            dataclasses.replace(
                self,
                name=self.base_name,
                component=name,
                denoiser=kind,
                **({} if is_denoisers_name(name) else OF_DENOISER),
            )
            for name, kind in zip(self.components, kinds, strict=True)
        )

    @property
    def _ending(self) -> str:
        """Of names; a folder may not have the sign that joins."""
        return self.component.replace(JOINED, "-")

    @property
    def base_name(self) -> str:
        """The model's name, whichever part of its pipeline it is."""
        return self.name.removesuffix(f"-{self._ending}")

    @property
    def zoo(self) -> Path:
        """Where the zoo keeps a pipeline of this name, whichever part of it the model is."""
        return ZOO / self.base_name

    @property
    def directory(self) -> Path | None:
        """The pipeline's local directory; for a single file, the one that describes it."""
        if (file := self.file) is not None:
            return single_file.config_folder(file, self.load.get("config"), download=False)
        if self.path == "zoo":
            return self.zoo / "pipeline"
        path = Path(self.path).expanduser()
        return path if path.is_dir() else None
