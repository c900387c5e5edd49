"""What a packed denoiser's directory holds, and how to read it: weight files, their headers, the packed weights' list.

config.json                                 as diffusers writes it, with a ``quantization_config`` of ours
diffusion_pytorch_model[.VARIANT].safetensors, or the shards that ...safetensors.index[.VARIANT].json lists
    path.packed.K.codes, .scale, ...        the K-th input slice of a quantized weight
    everything else                         biases, norms, weights at full precision, as they were
    metadata                                the configuration as JSON
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qsdm.graph import Weight, canonical
from qsdm.qconfig import QuantConfig, QuantMethod
from qsdm.quant.packed_model import Slice
from qsdm.store import StoreError, manifest
from qsdm.store.checksum import checksum, is_whole, with_checksum
from qsdm.store.files import decode, read_json
from qsdm.store.header import Header, read_header

SCHEMA = "qsdm/checkpoint/1"
QUANT_METHOD = "qsdm"
STEM = "diffusion_pytorch_model"
FILE = f"{STEM}.safetensors"


class CheckpointError(StoreError):
    """A checkpoint is damaged, truncated or not ours; the message says what to do."""


def file_metadata(qconfig: QuantConfig) -> dict[str, str]:
    """What a denoiser's file says of itself."""
    return {"qsdm": json.dumps({"schema": SCHEMA, "qconfig": qconfig.to_json()})}


def plan_of(weights: list[Mapping[str, Any]]) -> list[Slice]:
    """The slices that a ``quantization_config`` lists, in order of their input channels.

    Raises:
        CheckpointError: it lists something else.
    """
    plan = []
    try:
        for entry in weights:
            fields = {key: value for key, value in entry.items() if key != "method"}
            weight = Weight(
                **fields | {"shape": tuple(fields["shape"]), "ties": tuple(fields["ties"])}
            )
            if not all(
                isinstance(name, str) for name in (weight.name, weight.parameter, *weight.ties)
            ):
                raise TypeError("a name is not a string")
            plan.append(Slice(weight, QuantMethod.parse(entry["method"])))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"config.json lists no packed weights of ours ({error}): copy it again"
        ) from error
    return plan


def seal(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a packed denoiser: its own entries and ``quantization_config``, both with checksums."""
    about = with_checksum({**quantization, "config_checksum": checksum(canonical(config))})
    return {**config, "quantization_config": about}


def check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Compare what config.json holds with its checksums, if there are any.

    Raises:
        CheckpointError: it is of another version, or damaged.
    """
    if (version := config["quantization_config"].get("version", SCHEMA)) != SCHEMA:
        raise CheckpointError(
            f"wanted a checkpoint of schema {SCHEMA!r} (got {version!r} in {file}): copy it again, or save it again"
        )
    own = {key: value for key, value in config.items() if key != "quantization_config"}
    about = config["quantization_config"]
    if about.get("config_checksum", digest := checksum(canonical(own))) != digest:
        raise CheckpointError(
            f"{file} is not as it was saved: copy it again, or remove its config_checksum and "
            "checksum if you changed it on purpose"
        )
    if not is_whole(about):
        raise CheckpointError(f"the quantization_config in {file} is damaged: copy it again")


def write_checksums(folder: Path, component: str) -> None:
    """List a pipeline's files, without those of its packed component, which carry their own."""
    own = (component, manifest.NAME, "README.md")
    files = [path for path in folder.rglob("*") if path.is_file()]
    manifest.write_checksums(
        folder, [path for path in files if path.relative_to(folder).parts[0] not in own]
    )


def check_files(folder: Path) -> None:
    """Compare a pipeline's files with their checksums, if there are any.

    Raises:
        CheckpointError: a file is missing or is not as it was saved.
    """
    try:
        files = manifest.read_checksums(folder)
    except StoreError as error:
        raise CheckpointError(str(error)) from error
    for name, expected in files.items():
        if told := manifest.fault(folder / name, expected):
            raise CheckpointError(
                f"{folder / name} {told}: copy it again, or remove {folder / manifest.NAME} if "
                "you changed it on purpose"
            )


def component_folder(path: Path) -> Path:
    """The directory of the packed denoiser: ``path`` itself or one in it.

    Raises:
        CheckpointError: there is none.
    """
    children = sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else ()
    for folder in (path, *children):
        config = folder / "config.json"
        if not config.is_file():
            continue
        try:
            about = decode(config.read_bytes(), dict[str, Any]).get("quantization_config") or {}
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{config} cannot be read as JSON ({error}): copy it again"
            ) from error
        ours = isinstance(about, dict) and about.get("quant_method") == QUANT_METHOD
        if ours and "weights" in about:
            return folder
    raise CheckpointError(
        f"no quantized checkpoint in {path}: "
        "wanted a directory that save_quantized or python -m qsdm.realize wrote"
    )


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files that diffusers reads the denoiser from: an index decides if there is one, else one file.

    Raises:
        CheckpointError: the index cannot be read or names files that are missing, or there is no such file.
    """
    infix = f".{variant}" if variant else ""
    index, single = folder / f"{FILE}.index{infix}.json", folder / f"{STEM}{infix}.safetensors"
    if not index.exists():
        if single.exists():
            return [single]
        others = sorted(saved_variants(folder) - {variant}, key=str)
        remedy = f"give variant={others[0]!r}" if others else "copy or save the checkpoint again"
        raise CheckpointError(
            f"no complete checkpoint in {folder}: wanted {single.name} or {index.name}; {remedy}"
        )
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
        shards = [folder / name for name in names]
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index} lists no shards ({error}): copy it again") from error
    for shard in shards:
        if shard.parent != folder or not shard.is_file():
            raise CheckpointError(
                f"{index} names {shard.name!r}, which is missing: copy the shard into {folder}, "
                "or remove the index if it is left over from an earlier save"
            )
    return shards


def saved_variants(folder: Path) -> set[str | None]:
    """The variants that a directory holds weights of; None stands for weights without one."""
    index = rf"{re.escape(FILE)}\.index(?:\.(?P<index>[^.]+))?\.json"
    file = rf"{STEM}(?:\.(?P<file>[^.]+?))?(?:-\d+-of-\d+)?\.safetensors"
    names = (re.fullmatch(f"{index}|{file}", path.name) for path in folder.glob(f"{STEM}*"))
    return {name["index"] or name["file"] for name in names if name}


def header(file: Path) -> Header:
    """The header of a safetensors file of ours.

    Raises:
        CheckpointError: the file is missing, truncated, or no checkpoint of ours.
    """
    try:
        found = read_header(file)
        if json.loads(found.metadata["qsdm"])["schema"] != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} is no complete checkpoint of ours ({error}): copy or save it again"
        ) from error
    return found
