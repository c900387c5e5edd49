"""What is wrong with the files of a diffusers pipeline, in one sentence with file and remedy.

The libraries themselves only say where their parser stopped. Here only headers are read, which
takes milliseconds.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qsdm.store.header import read_header


class ModelError(Exception):
    """A model cannot be loaded; the message says how to get it."""


PICKLES = (".bin", ".ckpt", ".pt", ".pth")
PACKAGES = {
    "aqlm": "aqlm",
    "auto-round": "auto-round",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "eetq": "eetq",
    "gguf": "gguf",
    "gptq": "gptqmodel",
    "higgs": "flute-kernel",
    "hqq": "hqq",
    "modelopt": "nvidia-modelopt",
    "quanto": "optimum-quanto",
    "quark": "amd-quark",
    "sdnq": "sdnq",
    "torchao": "torchao",
    "vptq": "vptq",
}
"""Package on PyPI that reads the weights, by ``quant_method``."""

IMPORTED_AS = {
    "optimum-quanto": "optimum.quanto",
    "nvidia-modelopt": "modelopt",
    "amd-quark": "quark",
}
WEIGHTLESS = re.compile(r"(Scheduler|Tokenizer(Fast)?|Backend|Processor\w*|FeatureExtractor)$")
"""Classes of components that have no weights; tokenizers without a class of their own are called
TokenizersBackend, SentencePieceBackend and so on since transformers 5."""

CONVERT = (
    'python -c "from diffusers import DiffusionPipeline as P; '
    "P.from_pretrained('{folder}', use_safetensors=False).save_pretrained('NEW_FOLDER')\""
)
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)"
    r"(?:\.(?P<first>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<second>\w+))?\.safetensors"
)
_OF_CODES = re.compile(
    r"(^|\.)(weight_scale(_inv|_2)?|scale_weight|SCB|absmax|quant_map|qweight|qzeros"
    r"|weight_packed|scaled_fp8|comfy_quant)$"
)
"""Names of tensors that go with another engine's codes: compressed-tensors', ComfyUI's, GPTQ's,
bitsandbytes'."""


def read_config(path: Path) -> Any:
    """Read a JSON file of the user's, with or without a byte order mark.

    Args:
        path: of the file.

    Returns:
        Its content.

    Raises:
        ValueError: it is damaged or not JSON; the message is a whole sentence.
    """
    if (fault := file_fault(path)) is not None:
        raise ValueError(fault)
    return json.loads(path.read_text(encoding="utf-8-sig"))


def file_fault(path: Path) -> str | None:
    """Say why a file is not what its name says.

    Args:
        path: of a JSON, text or safetensors file.

    Returns:
        One sentence if it is a git-LFS pointer, a web page, empty, truncated or damaged; else None.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}): restore it"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start:
        return f"{path} is empty: download it again"
    if text.startswith(b"version https://git-lfs"):
        return (
            f"{path} is a git-LFS pointer, not the file itself: run `git lfs pull` in "
            f"{path.parent}, or download the file"
        )
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return (
            f"{path} is a web page that was saved under this name: download the file itself "
            "(for a gated repository, run `hf auth login` first)"
        )
    if path.suffix == ".json":
        return _json_fault(path)
    return _safetensors_fault(path, start, size) if path.suffix == ".safetensors" else None


def mark_fault(path: Path) -> str | None:
    """Say if a config cannot be read by diffusers and transformers for its first three bytes.

    Args:
        path: of a JSON file of a pipeline.
    """
    if path.suffix != ".json" or not path.read_bytes().startswith(b"\xef\xbb\xbf"):
        return None
    return (
        f"{path} begins with a byte order mark, which diffusers cannot read: "
        "save it as UTF-8 without one"
    )


def _json_fault(path: Path) -> str | None:
    try:
        json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        return f"{path} cannot be read as JSON ({error}): restore it"
    return None


def _safetensors_fault(path: Path, start: bytes, size: int) -> str | None:
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        return (
            f"{path} is a pickle under the name of a safetensors file: convert it, "
            "or download the safetensors file"
        )
    if start.startswith(b"GGUF"):
        return (
            f"{path} is a GGUF file, whose weights are already quantized: "
            "give the full-precision safetensors file"
        )
    length = int.from_bytes(start[:8], "little")
    if start[8:9] != b"{":
        return f"{path} is not a safetensors file: download it again"
    if size < 8 + length:
        return (
            f"{path} is truncated (wanted {8 + length:,} bytes or more, got {size:,}): "
            "download it again"
        )
    try:
        declared = read_header(path, whole=False).size_bytes
    except (OSError, ValueError) as error:
        return f"{path} has a damaged header ({error}): download it again"
    if size < declared:
        return f"{path} is truncated (wanted {declared:,} bytes, got {size:,}): download it again"
    if size > declared:
        return f"{path} has {size - declared:,} bytes too many: download it again"
    return None


def codes_fault(files: Iterable[Path]) -> str | None:
    """Say why weights are no values, where no config says so and libraries would read them as such.

    Args:
        files: of a component, complete.

    Returns:
        One sentence if one holds integers, or scales of codes of 8 bits or less; else None.
    """
    for file in files:
        parts = read_header(file, whole=False).parts if file.suffix == ".safetensors" else {}
        for name, entry in parts.items():
            is_integer = entry.dtype in ("I8", "U8") and len(entry.shape) > 1
            if is_integer or _OF_CODES.search(name):
                return (
                    f"{file} holds quantized weights ({name}), and its config.json does not say of "
                    "which engine: give the files with values of 16 or 32 bits"
                )
    return None


def pipeline_fault(folder: Path, load: Mapping[str, Any]) -> str | None:
    """Say why a pipeline cannot be loaded.

    Args:
        folder: of the pipeline.
        load: arguments of from_pretrained: ``variant``, and components that are not read because
            they are null or replaced.

    Returns:
        One sentence; None if the files show no reason.
    """
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        return _no_pipeline(folder)
    if (fault := file_fault(index_file) or mark_fault(index_file)) is not None:
        return fault
    index = read_config(index_file)
    if not isinstance(index, dict):
        return f"{index_file} does not hold a mapping: restore it"
    for name, entry in index.items():
        if not isinstance(entry, list) and (folder / name).is_dir():
            return f"{index_file}: {name} is {entry!r}, not [LIBRARY, CLASS]: restore it"
        if name.startswith("_") or name in load or not isinstance(entry, list) or not all(entry):
            continue
        weightless = WEIGHTLESS.search(str(entry[-1])) is not None
        fault = component_fault(folder / name, load.get("variant"), weightless, str(entry[0]))
        if fault is not None:
            return fault
    return None


def _no_pipeline(folder: Path) -> str:
    remedy = "give path=DIRECTORY of a diffusers pipeline"
    if (folder / "config.json").is_file():
        return (
            f"{folder} is one component, not a whole diffusers pipeline (no model_index.json): "
            "give path=DIRECTORY of the pipeline, perhaps the folder above"
        )
    files = sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    if single := [file for file in files if file.suffix == ".safetensors"]:
        return (
            f"{folder} is not a diffusers pipeline (no model_index.json) but holds "
            f"{single[0].name}: give path={single[0]} to load that file"
        )
    if pickles := [file for file in files if file.suffix in PICKLES]:
        return (
            f"{folder} is not a diffusers pipeline (no model_index.json) but holds the pickle "
            f"{pickles[0].name}: convert it to safetensors, then give path=FILE.safetensors"
        )
    return f"{folder} is not a diffusers pipeline, it has no model_index.json: {remedy}"


def component_fault(
    folder: Path,
    variant: str | None = None,
    weightless: bool = False,
    library: str = "diffusers",
) -> str | None:
    """Say why one component of a pipeline cannot be loaded.

    Args:
        folder: of the component.
        variant: of the weight files, as from_pretrained takes it.
        weightless: whether the component has no weights, like a tokenizer.
        library: that loads it: diffusers or transformers.

    Returns:
        One sentence; None if the files show no reason.
    """
    if not folder.is_dir():
        return f"the pipeline lacks the folder {folder}: download all of it"
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".txt", ".model"):
            continue
        if (fault := file_fault(path) or mark_fault(path)) is not None:
            return fault
    if weightless:
        return None
    return quantization_fault(folder) or weights_fault(folder, variant, library)


def quantization_fault(folder: Path, about: Mapping[str, Any] | None = None) -> str | None:
    """Say why the weights of a component that is already quantized cannot be loaded.

    Args:
        folder: of the component.
        about: its ``quantization_config``; None for that of the folder's config.json.

    Returns:
        One sentence; None if it is not quantized, or the package that reads it is installed.
    """
    if about is None:
        path = folder / "config.json"
        config = read_config(path) if path.is_file() else None
        about = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(about, Mapping):
        return None
    bits = about.get("load_in_4bit") or about.get("load_in_8bit")
    method = str(about.get("quant_method") or ("bitsandbytes" if bits else "unnamed"))
    package = PACKAGES.get(method)
    if package is not None and is_installed(IMPORTED_AS.get(package, package.replace("-", "_"))):
        return None
    remedy = "give path=DIRECTORY of the pipeline as it was published, without quantized weights"
    if package is None:
        return f"{folder} is already quantized (config.json: quant_method {method}): {remedy}"
    return (
        f"{folder} is quantized by {method}, which is not installed: `pip install {package}`, "
        f"or {remedy}"
    )


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it is not imported by asking.

    Args:
        module: its dotted name.
    """
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # its parent is missing
        return False


def weights_fault(
    folder: Path, variant: str | None = None, library: str = "diffusers"
) -> str | None:
    """Say why a component's weights cannot be read.

    Args:
        folder: of the component.
        variant: of the files to load.
        library: that loads them: diffusers or transformers.

    Returns:
        One sentence if there are none or only other files, a shard is missing, or a file is
        damaged; else None.
    """
    from qsdm.denoisers.files import component_files

    try:
        chosen = component_files(folder.parent, folder.name, library, {"variant": variant})
    except ModelError as error:
        indices = sorted(folder.glob("*.safetensors.index*.json"))
        if fault := next(filter(None, map(file_fault, indices)), None):
            return fault
        names = [match for path in folder.iterdir() if (match := _WEIGHTS.fullmatch(path.name))]
        variants = {match["first"] or match["second"] for match in names} - {None}
        return str(error) if indices else _no_weights(folder, sorted(variants), variant)
    return next(filter(None, map(file_fault, chosen)), None)


def _no_weights(folder: Path, variants: list[str], variant: str | None) -> str:
    if variants:
        asked = f"no weights of the variant {variant!r}" if variant else "no plain weights"
        names = ", ".join(variants)
        return (
            f"{folder} has {asked}, only the variant {names}: add model.load.variant={variants[0]}"
        )
    others = sorted(
        path
        for path in folder.iterdir()
        if path.suffix in (*PICKLES, ".safetensors", ".msgpack", ".h5", ".onnx", ".gguf", ".pb")
    )
    if any(path.suffix in PICKLES for path in others):
        first = next(path for path in others if path.suffix in PICKLES)
        return (
            f"{folder} has its weights in a pickle only ({first.name}), which qsdm does not open: "
            f"convert the pipeline to safetensors, as with {CONVERT.format(folder=folder.parent)}"
        )
    if others:
        return (
            f"{folder} has no weights that diffusers finds, only "
            f"{', '.join(path.name for path in others)}: it looks for "
            "diffusion_pytorch_model.safetensors (for text encoders: model.safetensors)"
        )
    return f"{folder} has no weights: download all of the pipeline"
