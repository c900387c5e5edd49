"""What a pipeline's files and diffusers say about a model before any weights are loaded."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.denoisers.faults import ModelError, read_config

if TYPE_CHECKING:
    from torch import nn

    from qsdm.denoisers.model import Model

_CLASS_NAME = re.compile(r"[A-Z]\w+")
_DENOISERS = ("diffusers.models.unets.", "diffusers.models.transformers.")


def quiet() -> None:
    """Let diffusers and transformers print errors only, and no progress bars."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


def is_hub_id(path: str) -> bool:
    """Whether a path that does not exist may be a hub id: OWNER/NAME, and not a file name.

    Args:
        path: as the user gave it.
    """
    is_named = re.fullmatch(r"[A-Za-z0-9][\w-]*(\.[\w-]+)*/[A-Za-z0-9][\w.-]*", path) is not None
    return is_named and not path.endswith((".safetensors", ".ckpt", ".bin", ".pt", ".pth", ".gguf"))


def class_of(name: str, model: Model) -> Any:
    """Look up a class of diffusers.

    Args:
        name: of the class.
        model: for the message.

    Raises:
        ModelError: this version of diffusers has no such class.
    """
    import diffusers

    cls = getattr(diffusers, name, None)
    if cls is None or not _CLASS_NAME.fullmatch(name):
        raise ModelError(
            f"diffusers {diffusers.__version__} has no class {name!r} (model {model.name})"
        )
    return cls


def denoiser_class(model: Model) -> type[nn.Module]:
    """Look up the class of the model's denoiser, or of the part in its place.

    Args:
        model: whose ``denoiser`` names the class, of diffusers or transformers.

    Returns:
        The class.

    Raises:
        ModelError: the installed versions have no such class, or it is not a module.
    """
    import diffusers
    from torch import nn

    cls: Any = getattr(diffusers, model.denoiser, None)
    if cls is None and _CLASS_NAME.fullmatch(model.denoiser):
        import transformers

        cls = getattr(transformers, model.denoiser, None)
    if cls is None or not _CLASS_NAME.fullmatch(model.denoiser):
        cls = class_of(model.denoiser, model)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        names = ", ".join(denoisers_in(pipeline_index(model))) or "none"
        raise ModelError(
            f"the {model.component} of model {model.name} is a {model.denoiser}, which has no "
            f"weights to quantize: correct model.component (its denoisers: {names})"
        )
    module_class: type[nn.Module] = cls
    return module_class


def is_denoiser(cls: type) -> bool:
    """Whether a class is neither a text encoder nor a VAE, which are called once per picture.

    Args:
        cls: of a part of a pipeline.
    """
    return not cls.__module__.startswith(("transformers.", "diffusers.models.autoencoders."))


def denoisers_in(index: Mapping[str, Any]) -> dict[str, str]:
    """List the denoisers of a pipeline.

    Args:
        index: the pipeline's model_index.json.

    Returns:
        Component => class.
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
        if _CLASS_NAME.fullmatch(kind)
        and str(getattr(getattr(diffusers, kind, None), "__module__", "")).startswith(_DENOISERS)
    }


def pipeline_index(model: Model) -> Mapping[str, Any]:
    """Read the pipeline's model_index.json from its directory or from the hub's cache.

    Args:
        model: with the pipeline's path.

    Returns:
        The content; empty if the file is not on this machine.

    Raises:
        ModelError: the file is damaged.
    """
    if model.directory is not None:
        path = model.directory / "model_index.json"
        return read_mapping(path) if path.is_file() else {}
    import huggingface_hub

    try:
        cached = huggingface_hub.try_to_load_from_cache(
            model.path, "model_index.json", revision=model.revision
        )
    except ValueError:  # not a hub id
        return {}
    return read_mapping(Path(cached)) if isinstance(cached, str) else {}


def saved_without(index: Mapping[str, Any]) -> dict[str, None]:
    """List the components that a pipeline was saved without, although its class wants them.

    diffusers notes them in model_index.json (Stable Diffusion 3 without its T5), and loads the
    pipeline only if they are named again.

    Args:
        index: content of model_index.json.

    Returns:
        None by the component's name, as ``from_pretrained`` takes it.
    """
    import diffusers

    cls = getattr(diffusers, str(index.get("_class_name")), None)
    if not isinstance(cls, type):
        return {}
    parameters = inspect.signature(cls).parameters.values()
    wanted = {p.name for p in parameters if p.default is p.empty}
    return {name: None for name, part in index.items() if name in wanted and part == [None, None]}


def pipeline_class(model: Model) -> type | None:
    """Look up the pipeline's class.

    Args:
        model: with the pipeline's path.

    Returns:
        The class in diffusers; None if the pipeline is not on this machine or brings its own class.

    Raises:
        ModelError: the pipeline's index is damaged.
    """
    import diffusers

    name = pipeline_index(model).get("_class_name")
    if not isinstance(name, str) or not _CLASS_NAME.fullmatch(name):
        return None
    quiet()  # diffusers imports the class now, and transformers would recommend torchvision
    cls = getattr(diffusers, name, None)
    return cls if isinstance(cls, type) else None


def denoiser_config(model: Model) -> Mapping[str, Any]:
    """Read the denoiser's config from its directory, or take the published one from the YAML.

    Args:
        model: whose denoiser is meant.

    Returns:
        The config, as from_config takes it.

    Raises:
        ModelError: there is neither, the pipeline has no such component, or its weights are
            already quantized.
    """
    config = model.config
    if model.directory is not None:
        path = model.directory / model.component / "config.json"
        if not path.is_file():
            raise ModelError(
                f"the pipeline {model.path!r} has no {model.component} ({path} is missing): "
                "correct model.component, or give path=DIRECTORY of a diffusers pipeline"
            )
        config = read_mapping(path)
        kind = (pipeline_index(model).get(model.component) or (None, None))[1]
        if kind not in (None, model.denoiser):
            raise ModelError(
                f"the {model.component} of {model.path!r} is a {kind}, not the {model.denoiser} of "
                f"model {model.name}: correct model.path or model.component"
            )
    if config.get("quantization_config"):
        raise ModelError(
            f"the {model.component} of {model.path!r} is already quantized: "
            "give path=DIRECTORY of the published one"
        )
    if not config:
        raise ModelError(
            f"{model.name!r} has no config: give path=DIRECTORY of a diffusers pipeline, "
            "or model.config in its YAML"
        )
    return config


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping.

    Args:
        path: of the file.

    Returns:
        The mapping.

    Raises:
        ModelError: the file is damaged or holds something else.
    """
    try:
        data = read_config(path)
    except ValueError as error:
        raise ModelError(str(error)) from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is not a config: wanted a mapping (got a {type(data).__name__})")
    return data
