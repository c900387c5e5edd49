"""Which codes stay on a GPU. There is none here: "meta" stands for it."""

from __future__ import annotations

import pytest
import torch

from qsdm.qconfig import QuantMethod
from qsdm.quant import kernels, placement
from qsdm.quant.decoding import dequantize
from qsdm.quant.fitting import fit
from qsdm.quant.placement import Lane, Placement
from qsdm.quant.quantized import Quantized

META, CPU = torch.device("meta"), torch.device("cpu")
UAQ4 = QuantMethod("uaq", 4)
WEIGHT = torch.randn(8, 33, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A device with kernels, where two and a half weights may stay; names that were read."""
    size = fit(WEIGHT, UAQ4).size_bytes
    monkeypatch.setattr(kernels, "run_on", lambda device: device == META)
    monkeypatch.setattr(placement, "free_memory", lambda _: 5 * size)
    return []


def placed(place: Placement, name: str, reads: list[str], device: torch.device) -> Quantized:
    def read() -> Quantized:
        reads.append(name)
        return fit(WEIGHT, UAQ4)

    return place.on(device, name, UAQ4, read)


def test_codes_stay_while_there_is_room_and_are_streamed_beyond(reads: list[str]) -> None:
    place = Placement()
    for name in ("a", "b", "c", "a", "b", "c"):
        assert placed(place, name, reads, META).codes.device == META
    assert reads == ["a", "b", "c", "c"]
    assert place.release()
    for name in ("a", "b"):
        placed(place, name, reads, META)
    assert reads == ["a", "b", "c", "c", "a", "b"]
    assert not place.release()
    placed(place, "a", reads, META)
    assert len(reads) == 7


def test_without_kernels_codes_stay_on_the_cpu(reads: list[str]) -> None:
    place = Placement()
    assert placed(place, "a", reads, CPU).codes.device == CPU
    assert placed(place, "a", reads, CPU).codes.device == CPU
    assert reads == ["a", "a"]
    assert not place.release()


def test_half_of_the_free_memory_is_for_activations() -> None:
    assert placement.room(16 * 2**30) == 8 * 2**30
    assert placement.room(0) == 0


@pytest.mark.parametrize("text", ["uaq-3", "uaq_g32-4", "kmeans_c-3", "nf4_g64-4", "fp-16"])
def test_what_is_carried_arrives_whole(text: str) -> None:
    lane = Lane(CPU)
    first, second = fit(WEIGHT, QuantMethod.parse(text)), fit(WEIGHT + 1, UAQ4)
    arrived, _ = lane.carry(first), lane.carry(second)  # the buffer is used again
    assert arrived.parts.keys() == first.parts.keys()
    assert all(torch.equal(arrived.parts[name], part) for name, part in first.parts.items())
    assert torch.equal(dequantize(arrived), dequantize(first))
