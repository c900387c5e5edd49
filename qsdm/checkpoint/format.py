"""The directory of a packed denoiser: its weight files, their headers, the list of packed weights.

config.json                                 as diffusers writes it, with our ``quantization_config``
diffusion_pytorch_model[.VARIANT].safetensors, or the shards listed in
diffusion_pytorch_model.safetensors.index[.VARIANT].json
    path.packed.K.codes, .scale, ...        the K-th input slice of a quantized weight
    everything else                         biases, norms and weights at full precision, unchanged
    metadata                                the configuration as JSON

A configuration that rounds activations makes schema 2 of ``quantization_config``: that of schema 1
with ``activations`` and ``inputs`` of the configuration, and in ``rounded`` the bits of the inputs
of layers by the name of their parameters.

One with bins of steps makes schema 3: that of schema 1 with ``qconfig``, the configuration,
``full_bits``, those of weights that it does not name, and ``rounded``, as in schema 2 for each of
``QuantConfig.parts``. Each method that a weight has in some bin is packed once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qsdm.graph import Graph, Weight, canonical
from qsdm.qconfig import QuantConfig, QuantMethod, input_bits
from qsdm.quant.packed_model import Slice
from qsdm.store import StoreError, manifest
from qsdm.store.checksum import checksum, is_whole, with_checksum
from qsdm.store.files import decode, read_json
from qsdm.store.header import Header, read_header

SCHEMA = "qsdm/checkpoint/1"
SCHEMA_OF_ACTIVATIONS = "qsdm/checkpoint/2"
SCHEMA_OF_STEPS = "qsdm/checkpoint/3"
SCHEMAS = (SCHEMA, SCHEMA_OF_ACTIVATIONS, SCHEMA_OF_STEPS)
QUANT_METHOD = "qsdm"
STEM = "diffusion_pytorch_model"
FILE = f"{STEM}.safetensors"
ENCODERS_FILE = "model.safetensors"
"""The name that transformers gives to the weights of a text encoder."""


class CheckpointError(StoreError):
    """A checkpoint is damaged, truncated or not of qsdm; the message says what to do."""


def file_metadata(qconfig: QuantConfig) -> dict[str, str]:
    """The metadata of a denoiser's file.

    Args:
        qconfig: the denoiser's configuration.
    """
    schema = schema_of(qconfig)
    return {"qsdm": json.dumps({"schema": schema, "qconfig": qconfig.to_json()})}


def schema_of(qconfig: QuantConfig) -> str:
    """The schema of a configuration's checkpoint: versions that cannot apply it refuse it.

    Args:
        qconfig: the denoiser's configuration.
    """
    if qconfig.steps:
        return SCHEMA_OF_STEPS
    return SCHEMA_OF_ACTIVATIONS if qconfig.rounds_activations else SCHEMA


def beside_weights(graph: Graph, qconfig: QuantConfig, full_bits: int = 16) -> dict[str, Any]:
    """What a ``quantization_config`` says about activations and bins of steps, if there are any.

    Args:
        graph: of the denoiser.
        qconfig: the denoiser's configuration.
        full_bits: of weights that have no method, in steps in which they are not quantized.

    Raises:
        OutsideSpace: the configuration names a weight that the graph lacks.
    """
    if qconfig.steps:
        return {
            "qconfig": qconfig.to_json(),
            "full_bits": full_bits,
            "rounded": [input_bits(graph, part) for _, part in qconfig.parts],
        }
    rounded = input_bits(graph, qconfig)
    if not qconfig.rounds_activations:
        return {}
    return {
        "activations": qconfig.activations,
        "inputs": dict(qconfig.inputs),
        "rounded": rounded,
    }


def plan_of(weights: list[Mapping[str, Any]]) -> list[Slice]:
    """The slices that a ``quantization_config`` lists.

    Args:
        weights: its entry of this name.

    Returns:
        The slices in order of their input channels.

    Raises:
        CheckpointError: the entry is malformed.
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
            f"the list of packed weights in config.json is malformed ({error}): copy it again"
        ) from error
    return plan


def bins_of(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The bins of steps in which other weights apply, as the metadata of a file tells them.

    Args:
        metadata: see `file_metadata`.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        qconfig = QuantConfig.from_json(json.loads(metadata["qsdm"])["qconfig"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the file's metadata hold no configuration ({error}): copy or save it again"
        ) from error
    return tuple(map(str, qconfig.steps))


def seal(config: Mapping[str, Any], quantization: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json, with checksums.

    Args:
        config: diffusers' entries.
        quantization: the ``quantization_config``.
    """
    about = with_checksum({**quantization, "config_checksum": checksum(canonical(config))})
    return {**config, "quantization_config": about}


def check_config(file: Path, config: Mapping[str, Any]) -> None:
    """Compare the content of config.json with its checksums, if it has any.

    Args:
        file: config.json, for the error message.
        config: its content.

    Raises:
        CheckpointError: it is of another version, or damaged.
    """
    if (version := config["quantization_config"].get("version", SCHEMA)) not in SCHEMAS:
        raise CheckpointError(
            f"wanted a checkpoint of schema {SCHEMA!r} (got {version!r} in {file}): "
            "copy it again, or save it again"
        )
    own = {key: value for key, value in config.items() if key != "quantization_config"}
    about = config["quantization_config"]
    if about.get("config_checksum", digest := checksum(canonical(own))) != digest:
        raise CheckpointError(
            f"{file} was changed after it was saved: copy it again, or remove its config_checksum "
            "and checksum if you changed it on purpose"
        )
    if not is_whole(about):
        raise CheckpointError(f"the quantization_config in {file} is damaged: copy it again")


def write_checksums(folder: Path, components: Iterable[str]) -> None:
    """List the checksums of a pipeline's files, except those of its packed components.

    Args:
        folder: the pipeline's directory.
        components: names of the packed components, whose files carry checksums of their own.

    Raises:
        StoreError: the list cannot be written.
    """
    excluded = (*components, manifest.NAME, "README.md")
    files = [path for path in folder.rglob("*") if path.is_file()]
    manifest.write_checksums(
        folder, [path for path in files if path.relative_to(folder).parts[0] not in excluded]
    )


def check_files(folder: Path) -> None:
    """Compare a pipeline's files with their checksums, if there is a list of them.

    Args:
        folder: the pipeline's directory.

    Raises:
        CheckpointError: a file is missing, or was changed after it was saved.
    """
    try:
        files = manifest.read_checksums(folder)
    except StoreError as error:
        raise CheckpointError(str(error)) from error
    for name, expected in files.items():
        if problem := manifest.fault(folder / name, expected):
            raise CheckpointError(
                f"{folder / name} {problem}: copy it again, or remove {folder / manifest.NAME} if "
                "you changed it on purpose"
            )


def component_folders(path: Path) -> list[Path]:
    """Find the directories of packed parts: the denoiser's, as a rule.

    Args:
        path: such a directory itself, or the pipeline's.

    Returns:
        At least one.

    Raises:
        CheckpointError: there is none.
    """
    folders = []
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
            folders.append(folder)
    if folders:
        return folders
    raise CheckpointError(
        f"no quantized checkpoint in {path}: "
        "wanted a directory that save_quantized or python -m qsdm.realize wrote"
    )


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The files from which diffusers reads the denoiser: the shards of an index, or a single file.

    Args:
        folder: the denoiser's directory.
        variant: of the files, as in diffusers' ``save_pretrained(variant="fp16")``.

    Raises:
        CheckpointError: there is neither, or the index cannot be read or names missing files.
    """
    if (folder / ENCODERS_FILE).is_file():
        return [folder / ENCODERS_FILE]
    infix = f".{variant}" if variant else ""
    index, single = folder / f"{FILE}.index{infix}.json", folder / f"{STEM}{infix}.safetensors"
    if not index.exists():
        if single.exists():
            return [single]
        others = sorted(saved_variants(folder) - {variant}, key=str)
        remedy = f"pass variant={others[0]!r}" if others else "copy or save the checkpoint again"
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
    """The variants of the weights in a directory.

    Args:
        folder: the denoiser's directory.

    Returns:
        Their names; None stands for weights without a variant.
    """
    index = rf"{re.escape(FILE)}\.index(?:\.(?P<index>[^.]+))?\.json"
    file = rf"{STEM}(?:\.(?P<file>[^.]+?))?(?:-\d+-of-\d+)?\.safetensors"
    names = (re.fullmatch(f"{index}|{file}", path.name) for path in folder.glob(f"{STEM}*"))
    return {name["index"] or name["file"] for name in names if name}


def header(file: Path) -> Header:
    """The header of a packed denoiser's file.

    Args:
        file: a safetensors file.

    Raises:
        CheckpointError: the file is missing, truncated, or was not written by qsdm.
    """
    try:
        contents = read_header(file)
        if json.loads(contents.metadata["qsdm"])["schema"] not in SCHEMAS:
            raise ValueError(f"its schema is not {SCHEMA}")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} is incomplete, damaged or not of qsdm ({error}): copy or save it again"
        ) from error
    return contents
