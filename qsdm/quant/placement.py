"""Packed codes on a GPU: kept there as far as its memory goes, else streamed from pinned memory.

A `Switch` decodes a weight where its parameter lies. On a GPU with kernels, the codes have to get
there first: over PCI Express at first, from the GPU's own memory the next time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from qsdm.qconfig import QuantMethod
from qsdm.quant import kernels
from qsdm.quant.quantized import Quantized

_ALIGNED = 16  # bytes; no stored type is wider


def room(free_bytes: int) -> int:
    """How many bytes of codes may stay on a GPU: half of what is free before the first come.

    The other half is for the activations of a batch. The six versions of SDXL's weights take 7 GB,
    so all stay on a GPU of 24 GB beside the pipeline in 16 bits; on one of 8 GB most are streamed.

    Args:
        free_bytes: memory that is free once the pipeline is loaded.
    """
    return free_bytes // 2


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU.

    Args:
        device: the GPU.
    """
    return torch.cuda.mem_get_info(device)[0]


class Placement:
    """Gives codes on the device where they are to be decoded."""

    def __init__(self) -> None:
        self._kept: dict[tuple[torch.device, str, QuantMethod], Quantized] = {}
        self._room: dict[torch.device, int] = {}  # bytes that may still be kept
        self._lanes: dict[torch.device, Lane] = {}

    def on(
        self, device: torch.device, name: str, method: QuantMethod, read: Callable[[], Quantized]
    ) -> Quantized:
        """The codes of a weight, for values on a device.

        Args:
            device: of the values.
            name: of the weight.
            method: one that it was quantized by.
            read: gives the codes on the CPU.

        Returns:
            Codes on the device; on the CPU if no kernel runs there.
        """
        if not kernels.run_on(device):
            return read()
        key = (device, name, method)
        if key in self._kept:
            return self._kept[key]
        if device not in self._lanes:
            self._room[device], self._lanes[device] = room(free_memory(device)), Lane(device)
        quantized = self._lanes[device].carry(read())
        if quantized.size_bytes <= self._room[device]:
            self._room[device] -= quantized.size_bytes
            self._kept[key] = quantized
        return quantized

    def release(self) -> bool:
        """Give up what is kept on GPUs, and keep nothing from now on.

        Returns:
            Whether anything was kept.
        """
        had = bool(self._kept)
        self._kept.clear()
        self._room = dict.fromkeys(self._room, 0)
        return had


class Lane:
    """Carries codes to a device through a buffer of pinned memory, in one copy per weight.

    Args:
        device: where they go.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffer = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def carry(self, quantized: Quantized) -> Quantized:
        """Copy the codes of a weight, and what is stored beside them.

        Args:
            quantized: on the CPU.

        Returns:
            The same on the device.
        """
        is_gpu = self.device.type == "cuda"
        sizes = [-(-part.nbytes // _ALIGNED) * _ALIGNED for part in quantized.parts.values()]
        if self._copied is not None:  # the copy before may still read the buffer
            self._copied.synchronize()
        if len(self._buffer) < sum(sizes):
            self._buffer = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=is_gpu)
        pieces = self._buffer[: sum(sizes)].split(sizes)
        for piece, part in zip(pieces, quantized.parts.values(), strict=True):
            piece[: part.nbytes].copy_(part.contiguous().view(-1).view(torch.uint8))
        there = self._buffer[: sum(sizes)].to(self.device, non_blocking=True, copy=True)
        if is_gpu:
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(self.device))
        parts = {
            name: piece[: part.nbytes].view(part.dtype).view(part.shape)
            for piece, (name, part) in zip(there.split(sizes), quantized.parts.items(), strict=True)
        }
        return Quantized(quantized.method, quantized.shape, parts.pop("codes"), parts)
