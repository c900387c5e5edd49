"""Messages over a pair of sockets: the driver's end never blocks, the worker's end does.

The driver must not block on a worker that died: a process that the worker forked may keep its end
of the pipe open, so that a write neither ends nor fails.
"""

from __future__ import annotations

import copyreg
import io
import socket
import struct
from collections import deque
from multiprocessing.reduction import ForkingPickler
from typing import Any

LENGTH = struct.Struct("!Q")  # of a message in bytes, sent before it
CHUNK_BYTES = 1 << 18


def encode(value: object) -> bytes:
    """Encode a value for another process of this run, as multiprocessing does.

    Tensors are copied, because shared memory would disappear with the worker.

    Args:
        value: anything that can be pickled.

    Returns:
        The message.

    Raises:
        Exception: whatever the value's own code raises.
    """
    buffer = io.BytesIO()
    pickler = ForkingPickler(buffer, 5)
    pickler.dispatch_table = copyreg.dispatch_table  # type: ignore[assignment]
    pickler.dump(value)
    return buffer.getvalue()


def decode(message: bytes | bytearray) -> Any:
    """Decode a value that another process of this run encoded.

    Args:
        message: of `encode`.

    Returns:
        The value.

    Raises:
        Exception: whatever the value's own code raises.
    """
    return ForkingPickler.loads(message)


class DriverEnd:
    """Messages to and from one worker.

    Args:
        sock: one socket of a connected pair; it becomes non-blocking.

    Attributes:
        ended: whether the worker has closed its end and everything that it wrote has been read.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._unsent: deque[memoryview] = deque()
        self._received = bytearray()
        self.ended = False

    def fileno(self) -> int:
        """File descriptor, for selectors."""
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether `flush` must be called once the socket is writable."""
        return bool(self._unsent)

    def send(self, message: bytes) -> None:
        """Write what the socket accepts now, and keep the rest for `flush`."""
        self._unsent += memoryview(LENGTH.pack(len(message))), memoryview(message)
        self.flush()

    def flush(self) -> None:
        """Continue writing; if the worker died, drop the rest, since `receive` will show that."""
        try:
            while self._unsent:
                part = self._unsent[0]
                sent = self._socket.send(part)
                if sent == len(part):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = part[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent.clear()

    def receive(self) -> list[bytearray]:
        """The messages that one read completes, if any; sets ``ended``."""
        try:
            chunk = self._socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return []
        except OSError:
            chunk = b""
        self.ended = not chunk
        self._received += chunk
        messages = []
        while len(self._received) >= LENGTH.size:
            end = LENGTH.size + LENGTH.unpack_from(self._received)[0]
            if len(self._received) < end:
                break
            messages.append(self._received[LENGTH.size : end])
            del self._received[:end]
        return messages

    def receive_rest(self) -> list[bytearray]:
        """All complete messages of a dead worker."""
        messages: list[bytearray] = []
        while not self.ended:
            before = len(self._received)
            arrived = self.receive()
            messages += arrived
            if not arrived and len(self._received) == before:
                break
        return messages

    def close(self) -> None:
        """Close the pipe, which ends an idle worker."""
        self._socket.close()


class WorkerEnd:
    """Messages to and from the driver.

    Args:
        sock: the other socket of the pair, blocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.set_inheritable(False)
        self._file = sock.makefile("rwb")

    def receive(self) -> bytes | None:
        """The next message; None if the driver has closed its end."""
        header = self._file.read(LENGTH.size)
        if len(header) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack(header)
        message = self._file.read(length)
        return message if len(message) == length else None

    def send(self, message: bytes) -> None:
        """Send a message; raises OSError if the driver has closed its end."""
        self._file.write(LENGTH.pack(len(message)))
        self._file.write(message)
        self._file.flush()
