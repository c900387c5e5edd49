"""Which files a pipeline is loaded from: the rule of diffusers and transformers, in one place.

The folder of a component may hold several copies of its weights: in one file and in shards, plain
and as a variant, and files left over from earlier. The libraries load one of them:

* diffusers: the shards that the index names if there is an index, else the single file;
* transformers: the single file if there is one, else the shards that the index names;
* a variant in the folders that hold a file of it, and the plain files in the others.

References:
    diffusers 0.42, ``ModelMixin.from_pretrained``, ``_fetch_index_file``,
        ``_identify_model_variants``.
    transformers 5, ``_get_resolved_checkpoint_files``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qsdm.denoisers.faults import WEIGHTLESS, ModelError, codes_fault, file_fault, mark_fault

if TYPE_CHECKING:
    from qsdm.denoisers import Model

STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
BIN_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "pytorch_model"}


def pipeline_folder(model: Model) -> Path:
    """Find the directory of a model's pipeline, or its snapshot in the hub's cache.

    Args:
        model: with the path of the pipeline, or of a single file that another pipeline describes.

    Returns:
        The directory.

    Raises:
        ModelError: the pipeline is not on this machine.
    """
    if model.directory is not None and model.directory.is_dir():
        return model.directory
    import huggingface_hub

    try:
        path = huggingface_hub.try_to_load_from_cache(
            model.path,
            "model_index.json",
            revision=model.revision,
            cache_dir=model.load.get("cache_dir"),
        )
    except ValueError:  # not a hub id
        path = None
    if not isinstance(path, str):
        raise ModelError(
            f"{model.path!r} is not on this machine: download it once with "
            f"`hf download {model.path}`, or give path=DIRECTORY of a diffusers pipeline"
        )
    return Path(path).parent


def read_index(folder: Path) -> dict[str, Any]:
    """Read ``model_index.json``.

    Args:
        folder: of the pipeline.

    Returns:
        Its content.

    Raises:
        ModelError: the file is missing or damaged.
    """
    path = folder / "model_index.json"
    try:
        if path.is_file() and (fault := file_fault(path) or mark_fault(path)) is not None:
            raise ModelError(fault)
        index = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(index, dict):
            raise ValueError("its model_index.json is not a mapping")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder} is not a diffusers pipeline ({error}): give path=DIRECTORY of one"
        ) from error
    return index


def loaded_components(folder: Path, load: Mapping[str, Any] = {}) -> dict[str, tuple[str, str]]:
    """List the components that are loaded from a pipeline's files.

    Args:
        folder: of the pipeline.
        load: arguments of ``from_pretrained``; components among them are replaced, not loaded.

    Returns:
        Name => (library, class).

    Raises:
        ModelError: there is no pipeline.
    """
    components = {
        name: (str(entry[0]), str(entry[-1]))
        for name, entry in read_index(folder).items()
        if not name.startswith("_") and isinstance(entry, list) and entry and all(entry)
        if name not in load
    }
    # The second of several ControlNets or adapters lies in NAME_1, the third in NAME_2, and so on.
    for name, entry in [pair for pair in components.items() if pair[1][1].startswith("Multi")]:
        others = (f"{name}_{i}" for i in itertools.count(1))
        components |= dict.fromkeys(
            itertools.takewhile(lambda other: (folder / other).is_dir(), others), entry
        )
    return components


def pipeline_files(folder: Path, load: Mapping[str, Any] = {}) -> dict[str, list[Path]]:
    """List the weight files that are loaded (see `component_files`).

    Args:
        folder: of the pipeline.
        load: arguments of ``from_pretrained``.

    Returns:
        Component => files.

    Raises:
        ModelError: there is no pipeline, or files of a component are missing.
    """
    return {
        name: component_files(folder, name, library, load)
        for name, (library, kind) in loaded_components(folder, load).items()
        if not WEIGHTLESS.search(kind)
    }


def component_files(
    folder: Path, name: str, library: str = "diffusers", load: Mapping[str, Any] = {}
) -> list[Path]:
    """List the weight files that a component is loaded from.

    Args:
        folder: of the pipeline.
        name: of the component.
        library: diffusers, transformers, or a module of diffusers whose classes derive from either.
        load: arguments of ``from_pretrained``, of which ``variant`` and ``use_safetensors`` (True
            by default) matter.

    Returns:
        The files, in the order in which they are loaded.

    Raises:
        ModelError: a file is missing.
    """
    home = folder / name if (folder / name).is_dir() else folder
    present = {path.name for path in home.iterdir()} if home.is_dir() else set()
    variant, safe = load.get("variant"), load.get("use_safetensors", True)
    if variant is not None and not any(
        file.split(".")[1].startswith(variant) for file in present if "." in file
    ):
        variant = None
    libraries = [library] if library in STEMS else ["diffusers", "transformers"]
    for owner in libraries:
        for file in _candidates(owner, home, variant, safe):
            if file.name in present:
                weights = _shards(file) if file.suffix == ".json" else [file]
                return weights + (_adapters(home) if owner == "transformers" else [])
    if library not in STEMS and (home / f"{library}.py").is_file():
        return []  # code that the pipeline brings, as of a scheduler
    kind = "weights" if safe is not True else "safetensors"
    which = f" of the variant {variant!r}" if variant else ""
    raise ModelError(
        f"{home} has no {kind}{which} that {library} loads as its {name}: download the pipeline"
    )


def require_values(folder: Path, load: Mapping[str, Any] = {}) -> None:
    """Refuse a pipeline if a component's files hold codes that libraries would read as values.

    Args:
        folder: of the pipeline.
        load: see `pipeline_files`.

    Raises:
        ModelError: they do.
    """
    try:
        loaded = pipeline_files(folder, load)
    except ModelError:  # what is missing is told where it is loaded
        return
    for name, files in loaded.items():
        try:
            config = json.loads((folder / name / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            config = {}
        is_told = isinstance(config, dict) and config.get("quantization_config")
        try:
            fault = None if is_told else codes_fault(files)
        except (OSError, ValueError):
            continue
        if fault is not None:
            raise ModelError(fault)


def _candidates(library: str, home: Path, variant: str | None, safe: bool | None) -> list[Path]:
    """Files that decide what is loaded; the first that exists counts."""
    single = home / _add(f"{STEMS[library]}.safetensors", variant)
    index = f"{STEMS[library]}.safetensors.index.json"
    binary = home / _add(f"{BIN_STEMS[library]}.bin", variant)
    binary_index = f"{BIN_STEMS[library]}.bin.index.json"
    if library == "transformers":
        safe_files = [_explicit(home), single, home / _add(index, variant)]
        binary_files = [binary, home / _add(binary_index, variant)]
        return ([] if safe is False else [file for file in safe_files if file]) + (
            [] if safe else binary_files
        )
    if safe is False:
        return [home / _add(binary_index, variant), *_legacy(home / binary_index, variant), binary]
    files = [home / _add(index, variant), *_legacy(home / index, variant), single]
    return files if safe else [*files, binary]


def _adapters(home: Path) -> list[Path]:
    """The files of a PEFT adapter that was saved with its model, which transformers puts on it."""
    if not (home / "adapter_config.json").is_file():
        return []
    files = [home / f"adapter_model.{ending}" for ending in ("safetensors", "bin")]
    return [file for file in files if file.is_file()][:1]


def _add(name: str, variant: str | None) -> str:
    stem, _, ending = name.rpartition(".")
    return f"{stem}.{variant}.{ending}" if variant else name


def _legacy(index: Path, variant: str | None) -> list[Path]:
    """An older name of a variant's index.

    diffusers splits the whole path, so it overlooks the file if a folder's name has a dot.
    """
    if variant is None:
        return []
    parts = str(index).split(".")
    cut = 3 if ".cache" in str(index) else 2
    path = Path(".".join([*parts[:cut], variant, *parts[cut:]]))
    return [path] if path.parent == index.parent else []


def _explicit(home: Path) -> Path | None:
    """The file that the config of a transformers model names."""
    try:
        name = json.loads((home / "config.json").read_text(encoding="utf-8"))[
            "transformers_weights"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return home / name if isinstance(name, str) and Path(name).name == name else None


def _shards(index: Path) -> list[Path]:
    """The files that an index names."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("it names files in other folders")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index} is not an index of shards ({error}): download the pipeline again"
        ) from error
    if missing := [name for name in names if not (index.parent / name).exists()]:
        raise ModelError(
            f"{index.parent / missing[0]} is missing, which {index.name} names: download it"
        )
    return [index.parent / name for name in names]
