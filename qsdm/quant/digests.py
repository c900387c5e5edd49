"""Values of a denoiser's weights, and digests by which they are recognized."""

from __future__ import annotations

from collections.abc import Callable

import torch

from qsdm.graph import Graph, Weight, canonical
from qsdm.quant.swap import sliced
from qsdm.store.checksum import checksum

# Values that stay in the caches, and so few that torch converts them on one thread. More are shared
# by threads, which wait for each other after each piece: on two busy cores, 6 to 20 times as long.
_CHUNK = 1 << 15


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor's values.

    Args:
        tensor: of any shape, type and device.

    Returns:
        A view of the values if they are contiguous and on the CPU, else of a copy.
    """
    if tensor.requires_grad or not tensor.is_cpu or not tensor.is_contiguous():
        tensor = tensor.detach().cpu().contiguous()
    if tensor.dim() == 0:
        tensor = tensor.view(1)
    # The rest is done for thousands of small tensors: each call of torch costs as much as hashing
    # ten kilobytes.
    return tensor.view(torch.uint8).numpy().reshape(-1).data


def values_of(tensors: Callable[[str], torch.Tensor], weight: Weight) -> torch.Tensor:
    """The values of a weight: its slice of its parameter.

    Args:
        tensors: parameters by name.
        weight: of the denoiser's graph.

    Returns:
        Contiguous, on the CPU, of the parameter's type.

    Raises:
        ValueError: the parameter has another shape than the graph says, or the values of tied
            parameters differ.
    """
    parameters = [tensors(name).cpu() for name in (weight.parameter, *weight.ties)]
    slices = [sliced(tensor, weight).contiguous() for tensor in parameters]
    if tuple(slices[0].shape) != weight.shape:
        raise ValueError(
            f"wanted {weight.name!r} of shape {weight.shape} (got {tuple(parameters[0].shape)}): "
            "weights and graph are of different models"
        )
    for name, other in zip(weight.ties, slices[1:], strict=True):
        if not torch.equal(slices[0], other) and all(values.isfinite().all() for values in slices):
            raise ValueError(
                f"{name!r} is tied to {weight.parameter!r}, but has other values: "
                "remove it from the model's tied list"
            )
    return slices[0]


def digest_of(tensor: torch.Tensor) -> str:
    """The checksum of a tensor's values in float32, whatever type they are stored in.

    Args:
        tensor: of any shape and floating-point type.

    Returns:
        32 hexadecimal digits.
    """
    if tensor.dtype == torch.float32:
        return checksum(bytes_of(tensor))
    import xxhash

    state = xxhash.xxh3_128()
    wide = torch.empty(_CHUNK)
    data = bytes_of(wide)
    for piece in tensor.detach().reshape(-1).split(_CHUNK):
        wide[: len(piece)].copy_(piece)
        state.update(data[: 4 * len(piece)])
    return state.hexdigest()


def fitted_digest(tensors: Callable[[str], torch.Tensor], graph: Graph) -> str:
    """The digest of all weights, as `qsdm.qconfig.cost.MethodTable.fitted` stores it.

    Args:
        tensors: parameters by name.
        graph: of the space.

    Returns:
        32 hexadecimal digits.

    Raises:
        ValueError: see `values_of`.
    """
    digests = {weight.name: digest_of(values_of(tensors, weight)) for weight in graph.weights}
    return checksum(canonical(digests))
