"""A model, as one entry of ``conf/model`` describes it: what is loaded, and how it draws."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsdm.denoisers import single_file
from qsdm.prompts import Prompts
from qsdm.store import ZOO
from qsdm.text import require

DEFAULT_COMPONENTS = ("unet", "transformer")
DTYPES = ("float32", "float16", "bfloat16", "float64")


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
            `qsdm.denoisers.with_component`). The name of the model ends with it, except for the
            first two, so that artifacts of several parts of one pipeline do not mix.
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
    component: str
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
        if not self.component.isidentifier():
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
        if self.component not in DEFAULT_COMPONENTS and not self.name.endswith(self.component):
            object.__setattr__(self, "name", f"{self.name}-{self.component}")
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
    def zoo(self) -> Path:
        """Where the zoo keeps a pipeline of this name, whichever part of it the model is."""
        return ZOO / self.name.removesuffix(f"-{self.component}")

    @property
    def directory(self) -> Path | None:
        """The pipeline's local directory; for a single file, the one that describes it."""
        if (file := self.file) is not None:
            return single_file.config_folder(file, self.load.get("config"), download=False)
        if self.path == "zoo":
            return self.zoo / "pipeline"
        path = Path(self.path).expanduser()
        return path if path.is_dir() else None
