"""``conf/model/NAME.yaml`` => a diffusers pipeline, or its denoiser's class and config."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.bounds import require
from qsdm.denoisers import conditioning, single_file, videos
from qsdm.denoisers.faults import (
    ModelError,
    component_fault,
    file_fault,
    pipeline_fault,
    read_config,
)
from qsdm.denoisers.files import component_files, pipeline_folder, read_index
from qsdm.denoisers.identity import SAME_PICTURES, WEIGHTS
from qsdm.denoisers.identity import Digests as Digests
from qsdm.denoisers.identity import digests_of as digests_of
from qsdm.denoisers.identity import pipeline_digest as pipeline_digest
from qsdm.denoisers.identity import sampler_of as sampler_of
from qsdm.denoisers.identity import source_digest as source_digest
from qsdm.denoisers.identity import weights_digest as weights_digest
from qsdm.graph import canonical
from qsdm.prompts import Captions, Label, Prompt, Prompts
from qsdm.prompts.edits import Edit
from qsdm.store import ZOO
from qsdm.store.manifest import check_shipped

if TYPE_CHECKING:
    import diffusers
    import torch
    from torch import nn

DEFAULT_COMPONENTS = ("unet", "transformer")


@dataclass(frozen=True, slots=True)
class Model:
    """One entry of ``conf/model``.

    Attributes:
        name: of the model; its artifacts lie under it in the store.
        path: Hugging Face hub id, a directory, a single file (see `single_file`), or ``zoo``
            for a pipeline that qsdm ships.
        denoiser: class in diffusers, as UNet2DConditionModel.
        config: the denoiser's published config, by which it is traced without weights.
        component: the pipeline's attribute that holds the denoiser: unet, transformer, transformer_2, prior, ...
            Of any but the first two the name ends in it, so that the artifacts of two lie apart.
        full_bits: precision of the published weights, 16 or 32.
        num_params: parameters of the denoiser, checked when it is traced.
        revision: of the hub repository.
        resolution_px: edge of the square pictures.
        steps: of the sampler.
        guidance: scale of classifier-free guidance.
        frames: of a video that count as pictures, evenly spaced; of a shorter one all.
        load: further arguments of from_pretrained; of a single file ``config``, the pipeline that describes it.
        call: further arguments of the pipeline's call.
        inputs: shapes by name that override the inputs built for tracing.
        exclude: regular expression of module paths that are not quantized.
        tied: regular expressions; parameters that match one of them with the same groups hold equal values.
        dtype: in which the denoiser computes, as torch spells it (but see `computed_in`).
        sampler: class in diffusers that takes the place of the pipeline's scheduler, with the options that it had.
        prompts: what the pictures are drawn of; a text is a JSON file with a list of captions, or ``zoo`` for the
            shipped one.
        metrics: what is measured by default, by name (see `qsdm.metrics`).
        source: where each figure comes from.
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
                f"model {self.name}: component must be a part of the pipeline, as unet or "
                f"transformer_2 (got {self.component!r})"
            )
        if not re.fullmatch(r"\w[\w.-]*", self.name):
            raise ValueError(
                f"wanted a name of letters, digits, '.', '-' and '_', as of a folder (got {self.name!r})"
            )
        if self.dtype not in ("float32", "float16", "bfloat16", "float64"):
            raise ValueError(
                f"model {self.name}: dtype must be float32, float16, bfloat16 or float64 (got {self.dtype!r})"
            )
        if self.component not in DEFAULT_COMPONENTS and not self.name.endswith(self.component):
            object.__setattr__(self, "name", f"{self.name}-{self.component}")
        require(1, num_params=self.num_params)
        if self.full_bits not in (16, 32):
            raise ValueError(
                f"model {self.name}: full_bits must be 16 or 32 (got {self.full_bits})"
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
    def directory(self) -> Path | None:
        """The pipeline's directory, if it is local; of a single file, the one that describes it."""
        if (file := self.file) is not None:
            return single_file.config_folder(file, self.load.get("config"), download=False)
        if self.path == "zoo":
            return ZOO / self.name / "pipeline"
        path = Path(self.path).expanduser()
        return path if path.is_dir() else None


def load_pipeline(
    model: Model, dtype: str = "float32", **components: Any
) -> diffusers.DiffusionPipeline:
    """The pipeline, on the CPU, without a progress bar of its own.

    Args:
        components: taken instead of the pipeline's own, which are then not loaded.

    Raises:
        ModelError: there are no weights here, or diffusers lacks the sampler.
    """
    import diffusers
    import torch

    quiet()
    source = existing(model)
    if isinstance(source, Path):
        check_shipped(source)
    if model.file is not None:
        pipeline = _of_file(model, getattr(torch, dtype), components)
        return _finished(pipeline, model)
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            source,
            revision=model.revision,
            dtype=getattr(torch, dtype),
            **{"use_safetensors": True, **model.load, **components},
        )
    except MemoryError:
        raise
    except Exception as error:  # whatever the libraries make of files that are not what they seem
        raise ModelError(_not_loaded(model, components, error)) from error
    return _finished(pipeline, model)


def _of_file(model: Model, dtype: torch.dtype, components: Mapping[str, Any]) -> Any:
    """The pipeline of a single file."""
    assert model.file is not None
    folder = describing_folder(model)
    nulls = {name: None for name, part in model.load.items() if part is None}
    given = {**nulls, **components}
    if (fault := single_file.rest_fault(model.file, folder, given, model.component)) is not None:
        raise ModelError(fault)
    return single_file.load(model.file, folder, model.component, dtype, given)


def describing_folder(model: Model) -> Path:
    """The directory of a local pipeline; of a single file, the one that describes it, downloaded if need be.

    Raises:
        ModelError: it is not here, and not to be had.
    """
    folder = model.directory
    if folder is None and model.file is not None:
        folder = single_file.config_folder(model.file, model.load.get("config"))
    if folder is None:
        raise ModelError(f"{model.path!r} is not here: give path=DIRECTORY of a diffusers pipeline")
    return folder


def denoiser_of_file(model: Model) -> nn.Module:
    """The denoiser of a single file, in the file's precision.

    Raises:
        ModelError: the file holds no such denoiser.
    """
    assert model.file is not None
    quiet()
    return single_file.load_denoiser(model.file, denoiser_class(model), denoiser_config(model))


def _finished(pipeline: Any, model: Model) -> Any:
    """With the model's sampler, without a progress bar."""
    if model.sampler is not None:
        pipeline.scheduler = _class(model.sampler, model).from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _not_loaded(model: Model, components: Mapping[str, Any], error: Exception) -> str:
    """Why a pipeline was not loaded, and what to do."""
    told = (str(error) or repr(error)).splitlines()[0]
    if model.directory is None:
        return (
            f"no weights of {model.name!r} at {model.path!r} ({type(error).__name__}): give path=DIRECTORY of a "
            f"diffusers pipeline, or download it once with `hf download {model.path}`"
        )
    fault = pipeline_fault(model.directory, {**model.load, **components})
    if fault is not None:
        return f"no weights of {model.name!r}: {fault}"
    return f"the pipeline {model.directory} cannot be loaded ({type(error).__name__}: {told})"


def existing(model: Model) -> Path | str:
    """The pipeline's directory, or its hub id.

    Raises:
        ModelError: the path is neither.
    """
    if model.file is not None:
        return model.file
    if model.directory is not None:
        return model.directory
    if not is_hub_id(model.path):
        raise ModelError(
            f"no file or directory {model.path!r}, and no hub id either (OWNER/NAME): "
            "give path=DIRECTORY of a diffusers pipeline"
        )
    return model.path


def is_hub_id(path: str) -> bool:
    """Whether a path that does not exist may be meant for the hub: OWNER/NAME, and no file's name."""
    named = re.fullmatch(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*/[A-Za-z0-9][\w.-]*", path) is not None
    return named and not path.endswith((".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".gguf"))


def quiet() -> None:
    """Let diffusers and transformers speak of errors only, without bars for files that load in a moment."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def computed_in(dtype: str) -> torch.dtype:
    """``dtype``, or float32 where this machine has no arithmetic for it.

    float32 rounds finer, and on a processor whose vectors hold no bfloat16 (x86 with AVX2) convolutions in bfloat16
    take 24 times as long, matrix products 8 times; float16 is slower still on any processor but the newest.
    """
    import torch

    wanted: torch.dtype = getattr(torch, dtype)
    if wanted == torch.float32 or torch.cuda.is_available():
        return wanted
    if wanted == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return wanted
    return torch.float32


def denoiser_of(pipeline: diffusers.DiffusionPipeline, model: Model) -> nn.Module:
    return getattr(pipeline, model.component)


def denoiser_class(model: Model) -> type[nn.Module]:
    """Raises ModelError if this version of diffusers has no such class, or it is no denoiser."""
    found: type[nn.Module] = _class(model.denoiser, model)
    if not _is_denoiser(found):
        raise ModelError(
            f"the {model.component} of model {model.name} is an {model.denoiser}, no denoiser: "
            f"correct model.component ({_named(denoisers_in(pipeline_index(model)))})"
        )
    return found


def _is_denoiser(cls: object) -> bool:
    module = str(getattr(cls, "__module__", ""))
    return module.startswith(("diffusers.models.unets.", "diffusers.models.transformers."))


def denoisers_in(index: Mapping[str, Any]) -> dict[str, str]:
    """Every denoiser of a pipeline: its class by its component.

    Args:
        index: the pipeline's model_index.json.
    """
    import diffusers

    classes = {
        name: str(entry[1])
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[0] == "diffusers"
    }
    return {
        name: kind
        for name, kind in classes.items()
        if re.fullmatch(r"[A-Z]\w+", kind) and _is_denoiser(getattr(diffusers, kind, None))
    }


def _named(found: Mapping[str, str]) -> str:
    return "its denoisers: " + (", ".join(found) or "none")


def pipeline_index(model: Model) -> Mapping[str, Any]:
    """The pipeline's model_index.json, from its directory or from the hub's cache; empty if it is not here."""
    if model.directory is not None:
        path = model.directory / "model_index.json"
        return _read(path) if path.is_file() else {}
    import huggingface_hub

    try:
        cached = huggingface_hub.try_to_load_from_cache(
            model.path, "model_index.json", revision=model.revision
        )
    except ValueError:  # the path is no hub id
        return {}
    return _read(Path(cached)) if isinstance(cached, str) else {}


def pipeline_class(model: Model) -> type | None:
    """The pipeline's class in diffusers; None if it is not here, or the pipeline brings its own."""
    import diffusers

    name = pipeline_index(model).get("_class_name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Z]\w+", name):
        return None
    quiet()  # diffusers imports the class now, and transformers would advise torchvision
    found = getattr(diffusers, name, None)
    return found if isinstance(found, type) else None


def frames_of(model: Model) -> int:
    """How many pictures the metrics take of one drawing: 1, or of a video as many as the model says and it has."""
    name = pipeline_index(model).get("_class_name")
    if isinstance(name, str) and videos.surely_draws_pictures(name):
        return 1
    cls = pipeline_class(model)
    takes = inspect.signature(cls.__call__).parameters if cls is not None else {}
    for name in videos.LENGTHS:
        if name in takes:
            length = model.call.get(name, takes[name].default)
            return min(model.frames, length) if isinstance(length, int) else model.frames
    return 1


def check_prompts(model: Model, prompts: Sequence[Prompt]) -> None:
    """Refuse prompts that the model's pipeline cannot draw, before anything is loaded.

    Raises:
        PromptsError: it wants others; the message says which.
        ModelError: its steps and strength leave nothing to draw.
    """
    if (cls := pipeline_class(model)) is None:
        return
    conditioning.check(cls, prompts, model.call.keys())
    if (parameter := inspect.signature(cls.__call__).parameters.get("strength")) is not None:
        strength = model.call.get("strength", parameter.default)
        if isinstance(strength, int | float) and 0 <= strength * model.steps < 1:
            raise ModelError(
                f"{cls.__name__} runs strength * steps = {strength} * {model.steps} steps, which is "
                "less than one: give more model.steps, or model.call.strength up to 1"
            )


def _class(name: str, model: Model) -> Any:
    import diffusers

    found = getattr(diffusers, name, None)
    if found is None or not re.fullmatch(r"[A-Z]\w+", name):
        raise ModelError(
            f"diffusers {diffusers.__version__} has no class {name!r} (model {model.name})"
        )
    return found


def denoiser_config(model: Model) -> Mapping[str, Any]:
    """The denoiser's config: of its directory, else the published one in the model's YAML.

    Raises:
        ModelError: there is neither, the directory has no such component, or its weights are quantized already.
    """
    config = model.config
    if model.directory is not None:
        path = model.directory / model.component / "config.json"
        if not path.is_file():
            raise ModelError(
                f"the pipeline {model.path!r} has no {model.component} ({path} is missing): "
                "correct model.component, or give path=DIRECTORY of a diffusers pipeline"
            )
        config = _read(path)
        kind = (pipeline_index(model).get(model.component) or (None, None))[1]
        if kind not in (None, model.denoiser):
            raise ModelError(
                f"the {model.component} of {model.path!r} is a {kind}, not the {model.denoiser} of "
                f"model {model.name}: correct model.path or model.component"
            )
    if config.get("quantization_config"):
        raise ModelError(
            f"the {model.component} of {model.path!r} is already quantized: give path=DIRECTORY of the published one"
        )
    if not config:
        raise ModelError(
            f"no config of {model.name!r}: give path=DIRECTORY of a diffusers pipeline, or model.config in its YAML"
        )
    return config


def can_be_called(model: Model) -> bool:
    """Whether the model's directory holds a pipeline that can be called with a prompt or a picture."""
    if model.directory is None:
        return False
    if model.file is not None:
        given = {model.component: None}
        if single_file.rest_fault(model.file, model.directory, given, model.component) is not None:
            return False
    index, cls = pipeline_index(model), pipeline_class(model)
    encodes_text = any(
        name.startswith("text_encoder") and isinstance(entry, list) and any(entry)
        for name, entry in index.items()
    )
    if cls is None:
        return encodes_text
    callable_ = conditioning.unavailable(cls, model.call.keys()) is None
    return callable_ and (encodes_text or bool(conditioning.needed(cls)))


def arguments(
    pipeline: diffusers.DiffusionPipeline,
    model: Model,
    prompts: Sequence[Prompt],
    **others: Any,
) -> dict[str, Any]:
    """Arguments of the pipeline's call that draw ``prompts`` as the model says, as far as it takes them.

    Args:
        others: further ones; those of ``model.call`` take precedence.

    Raises:
        ModelError: the pipeline draws classes, and there are only captions.
        PromptsError: a picture cannot be read.
    """
    takes = inspect.signature(type(pipeline).__call__).parameters
    wanted: dict[str, Any] = {
        "prompt": [str(prompt) for prompt in prompts],
        "num_inference_steps": model.steps,
        "guidance_scale": model.guidance,
        "height": model.resolution_px,
        "width": model.resolution_px,
        "max_area": model.resolution_px**2,  # to which FLUX Kontext scales height and width
    }
    if "prompt" not in takes and "class_labels" in takes:
        labels = [prompt.index for prompt in prompts if isinstance(prompt, Label)]
        if len(labels) < len(prompts):
            raise ModelError(
                f"{type(pipeline).__name__} draws classes: give prompts=imagenet (got captions)"
            )
        wanted["class_labels"] = labels
    if not {"prompt", "class_labels"} & takes.keys():
        wanted["batch_size"] = len(prompts)  # an unconditional pipeline
    if edits := [prompt for prompt in prompts if isinstance(prompt, Edit)]:
        wanted |= conditioning.pictures(pipeline, edits, model.resolution_px)
    return (
        {name: value for name, value in wanted.items() if name in takes} | others | dict(model.call)
    )


def first_call(pipeline: diffusers.DiffusionPipeline, model: Model) -> dict[str, Any]:
    """Arguments of the pipeline's call for one step of one picture, without classifier-free guidance.

    Pictures that it wants are made up. A strength below 1 would leave out the only step.
    """
    takes = inspect.signature(type(pipeline).__call__).parameters
    call = {**model.call, **({"strength": 1.0} if "strength" in takes else {})}
    once = dataclasses.replace(model, steps=1, guidance=1.0, call=call)
    given = conditioning.fabricated(pipeline, model.resolution_px)
    return arguments(pipeline, once, [Label(0, "a picture")], output_type="latent", **given)


def found_model(
    path: str,
    name: str | None = None,
    component: str | None = None,
    resolution_px: int | None = None,
    steps: int = 20,
    guidance: float = 5.0,
    **fields: Any,
) -> Model:
    """A `Model` that no YAML describes: denoiser and config from the pipeline's files.

    Args:
        path: a directory, a single file, or a hub id whose configs are downloaded (a few kB).
        name: the last part of the path and a digest, if it is not given. All commands find the store by the name, so
            the digest is of what decides the graph (class and config) instead of the graph, which is known only once
            it is traced; and of the whole path, because a fine-tuned copy has the same graph and other weights.
        component: unet, else transformer, else the first denoiser of the pipeline, if it is not given.
        resolution_px: the denoiser's sample size times what the VAE enlarges it by, if it is not given.

    Raises:
        ModelError: there is no diffusers pipeline, or none with a denoiser.
    """
    if not path:
        raise ModelError("the path is empty: give path=DIRECTORY of a diffusers pipeline")
    local, described = Path(path).expanduser(), path
    revision = fields.get("revision")
    if local.is_file():
        described = str(single_file.config_folder(local, fields.get("load", {}).get("config")))
    index = _pipeline_file(described, "model_index.json", revision)
    wanted = (component,) if component else ("unet", "transformer")
    component = next((c for c in wanted if (index.get(c) or (None,))[0] is not None), None)
    if component is None and len(wanted) > 1:
        component = next(iter(denoisers_in(index)), None)
    if component is None:
        found = ", ".join(sorted(key for key in index if not key.startswith("_")))
        raise ModelError(
            f"no denoiser in the pipeline {path!r}: wanted a {' or a '.join(wanted)} (got {found})"
        )
    published = _pipeline_file(described, f"{component}/config.json", revision)
    config = {key: value for key, value in published.items() if not key.startswith("_")}
    denoiser = index[component][1]
    if name is None:
        whole = str(local.resolve()) if local.exists() else f"{path}@{revision}"
        digest = hashlib.sha256(canonical([whole, denoiser, config])).hexdigest()
        last = local.resolve().name if local.exists() else path.replace("/", "--")
        last = last.removesuffix(".safetensors")
        name = re.sub(r"[^\w.-]+", "_", last) + f"-{digest[:8]}"
    return Model(
        name=name,
        path=path,
        denoiser=denoiser,
        component=component,
        config=config,
        resolution_px=default_resolution(described, index, config, revision)
        if resolution_px is None
        else resolution_px,
        steps=steps,
        guidance=guidance,
        **fields,
    )


def default_resolution(
    path: str, index: Mapping[str, Any], config: Mapping[str, Any], revision: str | None = None
) -> int:
    """Pixels of the edge of the pictures that a pipeline draws by default; 512 if its files do not tell.

    Args:
        index: of the pipeline.
        config: of its denoiser.
    """
    name = next(
        (name for name in ("vae", "vqvae", "movq") if all(index.get(name) or (None,))), None
    )
    size = config.get("sample_size")
    if isinstance(size, list | tuple):
        size = size[-1] if size and len({*size[-2:]}) == 1 else None
    if not isinstance(size, int):
        return 512
    return size * (
        1 if name is None else vae_factor(_pipeline_file(path, f"{name}/config.json", revision))
    )


def vae_factor(config: Mapping[str, Any]) -> int:
    """Pixels of a picture's edge per value of a latent's, as diffusers' pipelines compute it from a VAE's config."""
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
            raise ModelError(f"the pipeline {path!r} lacks {name}: download it whole")
        return _read(directory / name)
    if not is_hub_id(path):
        raise ModelError(
            f"no file or directory {path!r}, and no hub id either (OWNER/NAME): "
            "give path=DIRECTORY of a diffusers pipeline"
        )
    import huggingface_hub

    huggingface_hub.logging.set_verbosity_error()  # it warns of every attempt without a network
    try:
        return _read(Path(huggingface_hub.hf_hub_download(path, name, revision=revision)))
    except (
        OSError,
        ValueError,
        huggingface_hub.errors.HfHubHTTPError,
    ) as error:  # offline errors are OSErrors
        raise ModelError(
            f"there is no directory {path!r} here, and {name} of it cannot be had from the hub "
            f"({type(error).__name__}): check the name and the network, or give path=DIRECTORY of a diffusers pipeline"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        data = read_config(path)
    except ValueError as error:
        raise ModelError(str(error)) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is no config: wanted a mapping (got a {type(data).__name__})")
    return data


def prompts_of(model: Model) -> Sequence[Prompt]:
    """What the model draws.

    Raises:
        ModelError: the model names no prompts.
        PromptsError: they cannot be read.
    """
    if model.prompts is None:
        raise ModelError(
            f"model {model.name} has no prompts: add prompts=NAME, with a NAME of conf/prompts"
        )
    if isinstance(model.prompts, str):
        path = ZOO / model.name / "prompts.json" if model.prompts == "zoo" else Path(model.prompts)
        check_shipped(path)
        return Captions(str(path)).read()
    return model.prompts.read()


def denoiser_tensors(model: Model) -> Callable[[str], torch.Tensor]:
    """The denoiser's parameters by name, as they are loaded: one by one from its files where these are safetensors and
    nothing in ``model.load`` changes them, else from the loaded pipeline.

    Raises:
        ModelError: there are no weights here, or a file is damaged.
    """
    if model.file is not None:
        return denoiser_of_file(model).get_parameter
    files: list[Path] = []
    if not set(model.load) - SAME_WEIGHTS - _components_without(model):
        try:
            files = component_files(
                pipeline_folder(model), model.component, "diffusers", model.load
            )
        except ModelError as error:
            if model.directory is not None:
                wrong = component_fault(
                    model.directory / model.component, model.load.get("variant")
                )
                raise ModelError(wrong or str(error)) from error
    if not files or any(file.suffix != ".safetensors" for file in files):
        return denoiser_of(load_pipeline(model), model).get_parameter
    from safetensors import SafetensorError, safe_open

    where: dict[str, Any] = {}
    for file in files:
        try:
            opened = safe_open(file, "pt")
        except (OSError, SafetensorError) as error:
            told = f"{file} is no whole safetensors file ({error}): download it again"
            raise ModelError(file_fault(file) or told) from error
        where |= {name: (opened, name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    if any(OLD_NAMES.search(name) for name in where) and len(files) == 1:
        where = _renamed(model, where)

    def read(name: str) -> torch.Tensor:
        if name not in where:
            raise ModelError(
                f"the weights of {model.name!r} lack {name!r}, which its graph names: "
                f"run python -m qsdm.trace +model={model.name} again, or download the weights anew"
            )
        opened, stored = where[name]
        tensor: torch.Tensor = opened.get_tensor(stored)
        return tensor

    return read


SAME_WEIGHTS = SAME_PICTURES | WEIGHTS
"""Arguments of from_pretrained by which the denoiser's weights are still those of the files of `component_files`."""

OLD_NAMES = re.compile(r"\.(query|key|value|proj_attn)\.(weight|bias)$")
"""Of attention layers before diffusers 0.12, which ``from_pretrained`` renames in files that are not sharded."""


def _components_without(model: Model) -> set[str]:
    """Names of the pipeline's components, the denoiser apart: they change nothing of it."""
    try:
        return {name for name in read_index(pipeline_folder(model)) if not name.startswith("_")} - {
            model.component
        }
    except ModelError:
        return set()


def _renamed(model: Model, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """By the names that diffusers gives them when it loads the denoiser."""
    import torch

    quiet()
    with torch.device("meta"):
        module: Any = denoiser_class(model).from_config(dict(denoiser_config(model)))  # type: ignore[attr-defined]
    renamed = dict(tensors)
    module._fix_state_dict_keys_on_load(renamed)
    return renamed
