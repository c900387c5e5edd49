"""Digests of what decides a pipeline's pictures: weights, everything else that is loaded, sampler.

Models with equal digests draw the same pictures from the same prompts, steps, guidance and noise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from qsdm.denoisers.classes import pipeline_class
from qsdm.denoisers.faults import WEIGHTLESS, ModelError, read_config
from qsdm.denoisers.files import (
    component_files,
    loaded_components,
    pipeline_files,
    pipeline_folder,
    read_index,
)
from qsdm.denoisers.guidance import TRUE_CFG, has_true_cfg
from qsdm.denoisers.loading import describing_folder
from qsdm.store.manifest import check_shipped

if TYPE_CHECKING:
    from qsdm.denoisers.model import Model

SAME_PICTURES = {
    "low_cpu_mem_usage",
    "disable_mmap",
    "cache_dir",
    "local_files_only",
    "force_download",
    "proxies",
    "token",
}
"""Arguments of from_pretrained that change how files are fetched and read, not what is loaded."""

WEIGHTS = {"variant", "use_safetensors"}
"""Arguments of from_pretrained that choose weight files, whose contents are digested."""

SETTINGS = {".json", ".txt", ".model", ".jinja", ".py"}
"""Endings of the files of a component, weights apart, that change what it computes."""


def weights_digest(model: Model) -> str:
    """Digest the weights that the pipeline is loaded from.

    Args:
        model: whose pipeline is meant.

    Returns:
        sha256 of names and contents of the weight files; of hub id and revision if the files are
        not on this machine.

    Raises:
        ModelError: some of them are missing.
    """
    digest = hashlib.sha256()
    if model.file is not None:
        return _file_digest(model, model.file)
    try:
        folder = pipeline_folder(model)
    except ModelError:
        return unseen_digest(model)
    check_shipped(folder)
    files = [path for paths in pipeline_files(folder, model.load).values() for path in paths]
    for path in sorted(set(files)):
        digest.update(str(path.relative_to(folder)).encode())
        digest.update(_content(path))
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Digests:
    """Of what a pipeline is loaded from.

    Attributes:
        weights: see `weights_digest`.
        pipeline: of everything else, see `pipeline_digest`.
    """

    weights: str
    pipeline: str

    @property
    def source(self) -> str:
        """sha256 over both."""
        return _sha256([self.weights, self.pipeline])


def digests_of(model: Model) -> Digests:
    """Hash all that a pipeline is loaded from.

    Args:
        model: whose files are read.

    Returns:
        The digests.

    Raises:
        ModelError: files are missing, or a value of ``model.load`` has no content to hash.
    """
    return Digests(weights_digest(model), pipeline_digest(model))


def source_digest(model: Model) -> str:
    """Digest all that is loaded: weights and everything else.

    Args:
        model: whose pipeline is meant.

    Returns:
        sha256.

    Raises:
        ModelError: files are missing, or a value in ``model.load`` cannot be digested.
    """
    return digests_of(model).source


def _file_digest(model: Model, file: Path) -> str:
    """Of a single file, and of the weights that its pipeline takes from the describing folder."""
    folder = _folder(model)
    digest = hashlib.sha256(_content(file))
    load = {**model.load, model.component: None}
    for name, (library, kind) in sorted(loaded_components(folder, load).items()):
        if not WEIGHTLESS.search(kind):
            with suppress(ModelError):  # it is in the single file
                for path in component_files(folder, name, library, model.load):
                    digest.update(_content(path))
    return digest.hexdigest()


def _folder(model: Model) -> Path:
    """The folder of the pipeline, or the one that describes a single file."""
    return pipeline_folder(model) if model.file is None else describing_folder(model)


def unseen_digest(model: Model) -> str:
    """The stand-in for the digest of weights that are not on this machine.

    qsdm 0.1.0 used it for all models of the hub.

    Args:
        model: with hub id and revision.

    Returns:
        sha256.
    """
    return hashlib.sha256(f"{model.path}@{model.revision}".encode()).hexdigest()


def pipeline_digest(model: Model) -> str:
    """Digest what is loaded besides weights: components, configs, vocabularies, ``model.load``.

    Args:
        model: whose pipeline is meant.

    Returns:
        sha256.

    Raises:
        ModelError: a value in ``model.load`` cannot be digested.
    """
    chosen = {
        name: described(value, f"model.load.{name}")
        for name, value in model.load.items()
        if name not in SAME_PICTURES | WEIGHTS and value is not None
        if model.file is None or name != "config"  # the folder that describes a single file
    }
    # Layers of two denoisers of a pipeline may have the same names; tied parameters share a method.
    chosen = {"load": chosen, "component": model.component, "tied": list(model.tied)}
    try:
        folder = _folder(model)
    except ModelError:
        return _sha256({**chosen, "left_out": _left_out(model), "revision": model.revision})
    components = loaded_components(folder, model.load)
    index = {
        name: list(components[name]) if name in components else _plain(value)
        for name, value in read_index(folder).items()
        if not name.startswith("_") or name == "_class_name"
    }
    for name, value in index.items():
        if name not in components and isinstance(value, list):
            index[name] = None  # leaving a component out is the same as lacking it
    settings = {
        f"{name}/{path.name}": _setting(path)
        for name in sorted(components)
        if (folder / name).is_dir()
        for path in sorted((folder / name).iterdir())
        if path.suffix in ({".py"} if name == "scheduler" else SETTINGS)  # see `sampler_of`
        and not path.name.endswith(".index.json")
    }
    settings |= {str(name): _setting(path) for name, path in _own_code(folder, model).items()}
    return _sha256({**chosen, "index": index, "settings": settings})


def _own_code(folder: Path, model: Model) -> dict[str, Path]:
    """The source files of a pipeline whose class is not diffusers' own, by name."""
    code: dict[str, Path] = {}
    if not isinstance(read_index(folder).get("_class_name"), str):
        code |= {path.name: path for path in folder.glob("*.py")}
    if isinstance(custom := model.load.get("custom_pipeline"), str | Path):
        home = Path(custom).expanduser()
        for path in home.rglob("*.py") if home.is_dir() else [home]:
            if path.is_file():
                code[f"custom_pipeline/{path.relative_to(home)}"] = path
    return code


def sampler_of(model: Model) -> str:
    """Name the sampler.

    Args:
        model: whose pipeline is meant.

    Returns:
        The scheduler's class, and a digest of its options and of further arguments of the call.

    Raises:
        ModelError: the pipeline is not on this machine, or lacks a scheduler.
    """
    try:
        folder = _folder(model)
    except ModelError:
        if model.file is not None:
            raise
        return unseen_sampler(model)
    index = read_index(folder)
    try:
        options = read_config(folder / "scheduler" / "scheduler_config.json")
        options.pop("_diffusers_version", None)
        if not index["scheduler"][1]:
            raise ValueError("model_index.json has null in its place")
        kind = model.sampler or index["scheduler"][1]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{folder} has no scheduler ({error}): give path=DIRECTORY of a diffusers pipeline"
        ) from error
    return f"{kind} {_called(model, options)}"


def unseen_sampler(model: Model) -> str:
    """The stand-in for `sampler_of` if the pipeline is not on this machine.

    qsdm 0.1.0 used it for all models of the hub.

    Args:
        model: with hub id and revision.

    Returns:
        The scheduler's class and a digest.

    Raises:
        ModelError: the pipeline's index is not on this machine either.
    """
    from diffusers import DiffusionPipeline

    try:
        index = DiffusionPipeline.load_config(model.path, revision=model.revision)
    except OSError as error:
        raise ModelError(
            f"the pipeline {model.path!r} is not on this machine: "
            f"download it once with `hf download {model.path}`"
        ) from error
    return f"{model.sampler or index['scheduler'][1]} {_called(model, model.revision)}"


def _called(model: Model, options: Any) -> str:
    """Twelve digits of a digest of a scheduler's options, of ``model.call``, and of the argument
    that guides if it is another one than ``guidance_scale``."""

    def spell(value: Any) -> Any:
        return described(value, "model.call")

    content = [options, dict(model.call)]
    if (cls := pipeline_class(model)) is not None and has_true_cfg(cls):
        content.append(TRUE_CFG)
    # Not `canonical`: a scheduler's options may hold infinity.
    text = json.dumps(content, sort_keys=True, default=spell)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def described(value: Any, where: str) -> Any:
    """Describe the content of a value so that different contents have different digests.

    Args:
        value: anything that ``model.load`` or ``model.call`` may hold.
        where: its name, for the message.

    Returns:
        A description that JSON can hold.

    Raises:
        ModelError: the value does not show its content.
    """
    try:
        return _described(value, where)
    except RecursionError as error:
        raise _nothing_to_compare(value, where) from error


def _nothing_to_compare(value: Any, where: str) -> ModelError:
    return ModelError(
        f"{where} is a {_kind(value)}, whose content cannot be compared with another's: "
        "give a value that JSON can hold, a module or a tensor"
    )


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _described(value: Any, where: str) -> Any:
    import torch

    if isinstance(value, bool | int | float | str | type(None)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _described(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_described(entry, where) for entry in value]
    if isinstance(value, set | frozenset):
        return sorted(json.dumps(_described(entry, where), sort_keys=True) for entry in value)
    if isinstance(value, Path | torch.dtype | torch.device):
        return [type(value).__name__, str(value)]
    name = _kind(value)
    if isinstance(value, torch.Tensor):
        try:
            return [name, str(value.dtype), list(value.shape), _tensor(value)]
        except (RuntimeError, NotImplementedError) as error:  # as of one without storage
            raise _nothing_to_compare(value, where) from error
    if isinstance(value, torch.nn.Module):
        config = getattr(value, "config", None)
        config = _described(config, where) if isinstance(config, Mapping) else repr(config)
        state = {key: _described(entry, where) for key, entry in value.state_dict().items()}
        return [name, config, state]
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, FunctionType):
        bound = [
            value.__defaults__,
            value.__kwdefaults__,
            [cell.cell_contents for cell in value.__closure__ or ()],
        ]
        code = _code(value.__code__)
        return [value.__module__, value.__qualname__, *code, _described(bound, where)]
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return [name, _described(fields, where)]
    if callable(to_dict := getattr(value, "to_dict", None)):  # a configuration of a quantizer
        return [name, _described(to_dict(), where)]
    if isinstance(config := getattr(value, "config", None), Mapping):  # a scheduler
        return [name, _described(dict(config), where)]
    if vars_of := getattr(value, "__dict__", None):
        return [name, _described(vars_of, where)]
    raise _nothing_to_compare(value, where)


def _code(code: CodeType) -> list[Any]:
    constants = [
        _code(entry) if isinstance(entry, CodeType) else repr(entry) for entry in code.co_consts
    ]
    return [code.co_code.hex(), list(code.co_names), constants]


def _tensor(value: Any) -> str:
    import torch

    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(data.tobytes()).hexdigest()


def _left_out(model: Model) -> list[str]:
    return sorted(name for name, value in model.load.items() if value is None)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _setting(path: Path) -> Any:
    """The content of a component's file: a config without its writer's marks, else a digest."""
    if not path.name.endswith("config.json"):
        return _content(path).hex()
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}): restore it") from error
    if not isinstance(config, dict):
        return config
    return {
        key: value
        for key, value in config.items()
        if key
        not in ("_diffusers_version", "_name_or_path", "_commit_hash", "transformers_version")
    }


def _content(path: Path) -> bytes:
    """sha256 of a file, which is read again only if it changed."""
    status = path.stat()
    return _content_of(path, status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1024)
def _content_of(path: Path, _inode: int, _size: int, _changed_ns: int) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
