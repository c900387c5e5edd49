"""A `Model` for a pipeline that no YAML describes, from the pipeline's own files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qsdm.denoisers import single_file
from qsdm.denoisers.classes import denoisers_in, is_hub_id, read_mapping
from qsdm.denoisers.components import kind_in, with_component
from qsdm.denoisers.faults import ModelError, pipeline_fault
from qsdm.denoisers.loading import no_such_path
from qsdm.denoisers.model import (
    DEFAULT_COMPONENTS,
    JOINED,
    Model,
    check_kinds,
    is_denoisers_name,
    join,
)
from qsdm.graph import canonical

DEFAULT_RESOLUTION_PX = 512
"""Of Stable Diffusion 1, where a pipeline's files do not say."""


def discover(
    path: str,
    name: str | None = None,
    component: str | Sequence[str] | None = None,
    resolution_px: int | None = None,
    steps: int = 20,
    guidance: float = 5.0,
    **fields: Any,
) -> Model:
    """Describe a pipeline from its files.

    Args:
        path: a directory, a single file, or a hub id whose configs are downloaded (a few kB).
        name: of the model; by default the last part of the path and a digest. All commands find
            artifacts by the name, so the digest is of what determines the graph (class and config)
            and not of the graph, which is unknown before tracing; and of the whole path, because a
            fine-tuned copy has the same graph but other weights.
        component: of the denoiser, or another part in its place, as text_encoder or vae, or
            several; by default unet, else transformer, else the pipeline's first denoiser.
        resolution_px: edge of the pictures in px; by default the denoiser's sample size times the
            enlargement by the VAE.
        steps: number of the sampler's steps.
        guidance: scale of classifier-free guidance.
        **fields: further fields of `Model`.

    Returns:
        The model.

    Raises:
        ModelError: there is no diffusers pipeline, or it has no such part with weights.
        ValueError: a field is of another kind than `Model` takes.

    Example:
        >>> import qsdm
        >>> from qsdm.denoisers import discover
        >>> folder = qsdm.open("emoji_unet").model.directory
        >>> model = discover(str(folder), name="mine", steps=10)
        >>> model.denoiser, model.resolution_px
        ('UNet2DConditionModel', 32)
    """
    if not path:
        raise ModelError("the path is empty: give path=DIRECTORY of a diffusers pipeline")
    check_kinds(name or path, fields)
    local, described = Path(path).expanduser(), path
    revision = fields.get("revision")
    if local.is_file():
        described = str(single_file.config_folder(local, fields.get("load", {}).get("config")))
    index = _pipeline_file(described, "model_index.json", revision)
    if component is not None and JOINED in (together := join(component)):
        one = discover(path, name, None, resolution_px, steps, guidance, **fields)
        return with_component(one, together)
    part = join(component) if component else _denoiser_in(path, index)
    denoiser = kind_in(index, part, repr(path)) if component else index[part][1]
    config = _config(described, part, revision)
    if resolution_px is None:
        own = part if is_denoisers_name(part) else _denoiser_in(path, index)
        size = config if own == part else _config(described, own, revision)
        resolution_px = default_resolution(described, index, size, revision)
    return Model(
        name=_default_name(path, revision, [denoiser, config]) if name is None else name,
        path=path,
        denoiser=denoiser,
        component=part,
        config=config,
        resolution_px=resolution_px,
        steps=steps,
        guidance=guidance,
        **fields,
    )


def _denoiser_in(path: str, index: Mapping[str, Any]) -> str:
    """The component that holds the denoiser."""
    for name in (*DEFAULT_COMPONENTS, *denoisers_in(index)):
        if (index.get(name) or (None,))[0] is not None:
            return name
    components = ", ".join(sorted(key for key in index if not key.startswith("_")))
    raise ModelError(
        f"no denoiser in the pipeline {path!r}: wanted a {' or a '.join(DEFAULT_COMPONENTS)} "
        f"(got {components})"
    )


def _config(path: str, component: str, revision: str | None) -> dict[str, Any]:
    """A component's published config, without what its writer notes about itself."""
    published = _pipeline_file(path, f"{component}/config.json", revision)
    return {key: value for key, value in published.items() if not key.startswith("_")}


def _default_name(path: str, revision: str | None, identity: list[Any]) -> str:
    local = Path(path).expanduser()
    whole = str(local.resolve()) if local.exists() else f"{path}@{revision}"
    digest = hashlib.sha256(canonical([whole, *identity])).hexdigest()
    last = local.resolve().name if local.exists() else path.replace("/", "--")
    return re.sub(r"[^\w.-]+", "_", last.removesuffix(".safetensors")) + f"-{digest[:8]}"


def default_resolution(
    path: str, index: Mapping[str, Any], config: Mapping[str, Any], revision: str | None = None
) -> int:
    """Find the size of the pictures that a pipeline draws by default.

    Args:
        path: directory or hub id of the pipeline.
        index: its model_index.json.
        config: of its denoiser.
        revision: of the hub repository.

    Returns:
        Edge in px; 512 if the files do not say.

    Raises:
        ModelError: the config of the VAE is missing or damaged.
    """
    vae = next((name for name in ("vae", "vqvae", "movq") if all(index.get(name) or (None,))), None)
    size = config.get("sample_size")
    if isinstance(size, list | tuple):
        size = size[-1] if size and len({*size[-2:]}) == 1 else None
    if not isinstance(size, int):
        return DEFAULT_RESOLUTION_PX
    if vae is None:
        return size
    return size * vae_factor(_pipeline_file(path, f"{vae}/config.json", revision))


def vae_factor(config: Mapping[str, Any]) -> int:
    """Compute by how much a VAE enlarges the edge of a latent, as diffusers' pipelines do.

    Args:
        config: of the VAE.

    Returns:
        Pixels per value of the latent.
    """
    for ratio in ("spatial_compression_ratio", "scale_factor_spatial"):
        if isinstance(factor := config.get(ratio), int):
            return factor
    if isinstance(scaling := config.get("spatio_temporal_scaling"), list):
        patch = config.get("patch_size", 1)
        return int(patch * 2 ** sum(scaling))
    if isinstance(levels := config.get("temperal_downsample"), list):  # as diffusers spells it
        return int(2 ** len(levels))
    for channels in ("encoder_block_out_channels", "block_out_channels"):
        if isinstance(levels := config.get(channels), list):
            return int(2 ** (len(levels) - 1))
    return 8


def _pipeline_file(path: str, name: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of a pipeline, from its directory or from the hub."""
    directory = Path(path).expanduser()
    if directory.is_dir():
        if not (directory / "model_index.json").is_file():
            raise ModelError(pipeline_fault(directory, {}))
        if not (directory / name).is_file():
            raise ModelError(f"the pipeline {path!r} lacks {name}: download all of it")
        return read_mapping(directory / name)
    if not is_hub_id(path):
        raise ModelError(no_such_path(path))
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # it warns of every attempt without a network
    try:
        return read_mapping(Path(huggingface_hub.hf_hub_download(path, name, revision=revision)))
    except (
        OSError,
        ValueError,
        huggingface_hub.errors.HfHubHTTPError,
    ) as error:  # offline errors are OSErrors
        raise ModelError(
            f"there is no directory {path!r}, and {name} cannot be downloaded from the hub "
            f"({type(error).__name__}): check the name and the network, "
            "or give path=DIRECTORY of a diffusers pipeline"
        ) from error
