"""Messages between the driver and a worker: whole, in order, and never waited for by the driver."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from qsdm.engine.pipe import LENGTH, DriverEnd, WorkerEnd, decode, encode

Pair = tuple[DriverEnd, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, its = socket.socketpair()
    with ours, its:
        yield DriverEnd(ours), its


def test_messages_arrive_whole_and_in_order(pair: Pair) -> None:
    driver, sock = pair
    worker = WorkerEnd(sock)
    messages = [b"", b"a", bytes(range(256)) * 4_000, b"", b"z" * 3]

    def echo() -> None:
        for _ in messages:
            message = worker.receive()
            assert message is not None
            worker.send(message)

    thread = threading.Thread(target=echo)
    thread.start()
    for message in messages:
        driver.send(message)
    arrived: list[bytearray] = []
    while len(arrived) < len(messages):
        driver.flush()
        arrived += driver.receive()
    thread.join()
    assert arrived == messages
    assert not driver.has_unsent


def test_nobody_reads(pair: Pair) -> None:
    driver, sock = pair
    driver.send(bytes(10_000_000))
    assert driver.has_unsent
    sock.close()
    driver.flush()
    assert not driver.has_unsent
    assert driver.receive() == []
    assert driver.ended


def test_a_worker_dies_in_the_midst_of_a_message(pair: Pair) -> None:
    driver, sock = pair
    whole = [LENGTH.pack(5) + b"first", LENGTH.pack(0), LENGTH.pack(6) + b"second"]
    sock.sendall(b"".join(whole) + LENGTH.pack(5) + b"thi")
    assert driver.receive_rest() == [b"first", b"", b"second"]  # also while its pipe is open
    assert not driver.ended
    sock.close()
    assert driver.receive_rest() == []
    assert driver.ended


@pytest.mark.parametrize("part", [b"", b"\0\0\0", LENGTH.pack(5) + b"half"])
def test_the_driver_dies_in_the_midst_of_a_message(pair: Pair, part: bytes) -> None:
    driver, sock = pair
    driver._socket.sendall(part)
    driver.close()
    assert WorkerEnd(sock).receive() is None


def test_arrays_and_tensors_are_sent_by_value() -> None:
    """Torch would send a tensor as the name of shared memory, which ends with its process."""
    for value in (np.arange(10_000.0), torch.arange(10_000.0)):
        message = encode(value)
        assert len(message) > 4 * 10_000
        assert (decode(message) == value).all()
