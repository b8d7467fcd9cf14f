"""What those who train and parameter servers send each other: tensors by send and receive, and who wants what by TCP.

MindSpore's backend of CPU workers receives from a worker that is named beforehand, lets no other thread send meanwhile,
and gives up after half a minute: whoever is about to send tensors says so on a Line before, and there one can wait for
several, as long as it takes.
"""

import json
import os
import secrets
import socket
import struct
from collections.abc import Sequence

from mindspore import Tensor, ops

from msllm.errors import UserError
from msllm.parallel.comm import Group, buckets_of
from msllm.parallel.zero import pieces

# What is asked of a server.
START, SUM, UPDATE, APPLY, MEET, STATE, LOAD, END = range(8)

_MESSAGE = struct.Struct("!4d")
_HELLO = struct.Struct("!16si")
_SECONDS = 60  # for a line to be there


class Line:
    """A connection on which two workers send each other a few numbers.

    Args:
        connected: socket to the other worker.
        other: what it is called in errors.
    """

    def __init__(self, connected: socket.socket, other: str):
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket, self.other = connected, other

    def fileno(self) -> int:
        """Lets a selector wait for it."""
        return self.socket.fileno()

    def send(self, *numbers: float) -> None:
        """Sends at most four numbers; UserError where the other worker has gone."""
        try:
            self.socket.sendall(_MESSAGE.pack(*numbers, *[0.0] * (4 - len(numbers))))
        except OSError as e:
            raise self._gone() from e

    def receive(self) -> tuple[float, ...]:
        """Returns the four numbers that the other worker sends; UserError where it has gone."""
        return _MESSAGE.unpack(_read(self.socket, _MESSAGE.size, self._gone()))

    def send_json(self, value) -> None:
        """Sends what JSON can hold."""
        data = json.dumps(value).encode()
        self.send(len(data))
        self.socket.sendall(data)

    def receive_json(self):
        """Returns what send_json sent."""
        return json.loads(_read(self.socket, int(self.receive()[0]), self._gone()))

    def _gone(self) -> UserError:
        return UserError(f"{self.other} has gone; see its log, then start again with --resume auto")


class Listener:
    """Where a server waits for the lines of those who train.

    Attributes:
        address: what ``call`` needs.
    """

    def __init__(self):
        self._socket, self._secret = socket.create_server(("", 0)), secrets.token_bytes(16)
        self._socket.settimeout(_SECONDS)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:  # sends nothing, but knows from where it would
            way.connect((os.environ.get("MS_SCHED_HOST", "127.0.0.1"), 9))
            self.address = way.getsockname()[0], self._socket.getsockname()[1], self._secret

    def accept(self, count: int) -> list[Line]:
        """Returns the lines of workers 0 to ``count`` - 1, who call; UserError where one does not."""
        lines: dict[int, Line] = {}
        while len(lines) < count:
            try:
                connected = self._socket.accept()[0]
                connected.settimeout(_SECONDS)
                secret, rank = _HELLO.unpack(_read(connected, _HELLO.size, ConnectionError()))
            except TimeoutError:
                missing = ", ".join(f"worker {rank}" for rank in range(count) if rank not in lines)
                raise UserError(f"{missing} did not call this server within {_SECONDS} s; see its log") from None
            except ConnectionError:
                continue
            if secret == self._secret:
                lines[rank] = Line(connected, f"worker {rank}")
        self._socket.close()
        return [lines[rank] for rank in range(count)]


def call(address: tuple[str, int, bytes], rank: int, server: int) -> Line:
    """Returns a line to a server.

    Args:
        address: of its Listener.
        rank: of this worker; ``server`` of the other.
    """
    host, port, secret = address
    try:
        connected = socket.create_connection((host, port), _SECONDS)
        connected.sendall(_HELLO.pack(secret, rank))
    except OSError as e:
        raise UserError(
            f"worker {server}, a server, cannot be reached at {host} port {port}: {e}; let TCP through between the "
            f"workers"
        ) from None
    return Line(connected, f"worker {server}")


def _read(connected: socket.socket, size: int, gone: Exception) -> bytes:
    data = b""
    while len(data) < size:
        try:
            more = connected.recv(size - len(data))
        except ConnectionError:
            more = b""
        if not more:
            raise gone
        data += more
    return data


def deal(sizes: Sequence[int], servers: int) -> list[list[int]]:
    """Returns for each server the numbers of its parameters: the largest first, each to whoever has least so far.

    Such a deal gives nobody more than 4/3 of the best one (Graham 1969, "Bounds on Multiprocessing Timing Anomalies").
    """
    dealt, loads = [[] for _ in range(servers)], [0] * servers
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        least = loads.index(min(loads))
        dealt[least].append(i)
        loads[least] += sizes[i]
    return [sorted(numbers) for numbers in dealt]


def send_tensors(workers: Group, to: int, tensors: Sequence[Tensor]) -> None:
    """Sends float32 tensors, in few messages."""
    for bucket in buckets_of(tensors):
        workers.send(ops.concat([t.reshape(-1) for t in bucket]), to)


def receive_tensors(workers: Group, source: int, like: Sequence[Tensor]) -> list[Tensor]:
    """Returns what send_tensors sent, of the shapes of others."""
    received: list[Tensor] = []
    for bucket in buckets_of(like):
        row = workers.receive((sum(t.size for t in bucket),), source)
        received += pieces(row, [tuple(t.shape) for t in bucket])
    return received
