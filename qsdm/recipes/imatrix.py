"""Importance matrices: mean squares of layers' inputs, as other engines record them.

The binary file of stable-diffusion.cpp (``--imat-out imatrix.dat``) and of older llama.cpp, little
endian::

    int32       number of entries
    per entry   int32 length of the name, the name; int32 calls; int32 n; float32 [n]
    int32       number of the last call; other text may follow

The n values are mean squares times calls. Names are those of the tensors in the file that the
engine had loaded. It records matrix products, so convolutions are missing.

References:
    https://github.com/leejet/stable-diffusion.cpp/blob/master/docs/imatrix.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qsdm.graph import Graph
from qsdm.recipes import RecipeError
from qsdm.recipes.published import PREFIXES, own_names


def read(path: Path) -> dict[str, np.ndarray]:
    """Read a file.

    Args:
        path: of the file.

    Returns:
        Mean square of each input channel, float32 [n], by the name of a tensor.

    Raises:
        RecipeError: it cannot be read, or is none of these files.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"imatrix={path}: {error.strerror}") from error
    if data[:4] == b"GGUF":
        raise RecipeError(
            f"imatrix={path}: wanted the binary format of stable-diffusion.cpp (got GGUF): have "
            "llama-imatrix write it with --output-format dat"
        )
    entries: dict[str, np.ndarray] = {}
    try:
        (num_entries,) = struct.unpack_from("<i", data)
        at = 4
        for _ in range(num_entries):
            (length,) = struct.unpack_from("<i", data, at)
            if length < 1:
                raise ValueError(f"an entry has a name of {length} bytes")
            name, at = data[at + 4 : at + 4 + length].decode(), at + 4 + length
            calls, num = struct.unpack_from("<ii", data, at)
            if calls < 1 or num < 1:
                raise ValueError(f"entry {name!r} has {num} values of {calls} calls")
            values = np.frombuffer(data, "<f4", num, at + 8)
            if not (values >= 0).all():
                raise ValueError(f"entry {name!r} has a mean square that is negative or NaN")
            entries[name], at = (values / calls).astype(np.float32), at + 8 + 4 * num
    except (struct.error, ValueError) as error:
        raise RecipeError(
            f"imatrix={path} is damaged or no imatrix.dat ({error}): have it written again"
        ) from error
    return entries


def importances(
    graph: Graph, entries: Mapping[str, np.ndarray], origins: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Match entries with the weights of a denoiser.

    Args:
        graph: of the denoiser.
        entries: as `read` returns them.
        origins: name in the file that the engine had loaded, by name of a parameter, where it is
            known; other parameters are looked up by their own names.

    Returns:
        Float32 [in] by the name of a weight; weights that have no entry are missing.

    Raises:
        RecipeError: no weight has an entry, or one has another number of channels.
    """
    source = own_names(graph, entries) or {
        parameter: next((prefix + name for prefix in PREFIXES if prefix + name in entries), "")
        for parameter, name in origins.items()
    }
    matched: dict[str, np.ndarray] = {}
    for weight in graph.weights:
        if (entry := entries.get(source.get(weight.parameter, ""))) is None:
            continue
        own = entry[weight.start : weight.start + weight.shape[1]]
        if len(own) != weight.shape[1]:
            raise RecipeError(
                f"the entry of {weight.parameter!r} has {len(entry)} input channels, but "
                f"{weight.name!r} has {weight.start + weight.shape[1]}: the imatrix is of another "
                "model"
            )
        matched[weight.name] = own
    if not matched:
        known = next(iter(entries), "nothing")
        raise RecipeError(
            f"no weight of {graph.denoiser!r} has an entry (wanted names as "
            f"{graph.weights[0].parameter!r}, got {known!r}): give path=FILE, the very file that "
            "the engine had loaded, so that its names are known"
        )
    return matched
