"""Networks of another process: the same answers, nothing left in memory, and ends on both sides."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.errors import WorkerDied
from app.faces.images import DirectNetwork
from app.inference.batching import BatchedModel
from app.inference.device_graph import device_graph, read_network
from app.inference.pack_spec import ModelPack
from app.inference.remote.client import NetworkClient, RemoteNetwork
from app.inference.remote.frames import (
    MEMORY,
    OPEN,
    Reply,
    Request,
    RequestStatus,
    reply_of,
    request_of,
)
from app.inference.remote.greeting import Greeting
from app.inference.remote.served import ServedNetwork, served_network
from app.inference.remote.server import NetworkServer
from app.inference.remote.slots import SlotMemory, new_memory
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import FloatArray, Image, PixelScale
from tests.waiting import PATIENCE_S, until

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux alone has memfd")
LARGE, SMALL = (32, 32, 3), (8, 8, 3)
MOST_SLOTS = 64


class Doubling:
    """A network that fails on 13 and on 14, where its error names a file as the system has it, and
    answers nothing to 99 until it may."""

    output_names: list[str] = ["out"]  # noqa: RUF012
    cpu_nodes = ()

    def __init__(self) -> None:
        self.held: list[Future[list[FloatArray]]] = []

    def submit(self, images: Image) -> list[Future[list[FloatArray]]]:
        if (images == 13).any():
            raise ValueError("unlucky")
        if (images == 14).any():
            raise ValueError(os.fsdecode(b"caf\xe9.onnx"))
        answer = Future[list[FloatArray]]()
        if (images == 99).any():
            self.held.append(answer)
        else:
            answer.set_result([images[:, 0, 0, :2].astype(np.float32) * 2])
        return [answer]


class Side:
    """A server on an event loop of its own thread, as its process has it."""

    def __init__(self, openings: socket.socket, served: list[ServedNetwork], pack: str) -> None:
        facts = tuple(one.facts for one in served)
        greeting = Greeting(pack=(pack,), provider="CPUExecutionProvider", networks=facts)
        self.server = NetworkServer(greeting, served, openings, MOST_SLOTS)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._on_loop(self.server.open)

    def _on_loop(self, work: Any) -> None:
        async def run() -> None:
            work()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(PATIENCE_S)

    def close(self) -> None:
        if self._thread.is_alive():
            self._on_loop(self.server.close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE_S)
            self._loop.close()


class Pair:
    """A client, and the server of the moment."""

    def __init__(self) -> None:
        self.ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.network = Doubling()
        self.sides: list[Side] = []
        self.client = NetworkClient(self.ends[0])

    def serve(self, pack: str = "p") -> Side:
        served = [
            served_network("large", self.network, LARGE),
            served_network("small", self.network, SMALL),
        ]
        self.sides.append(Side(self.ends[1], served, pack))
        return self.sides[-1]

    def connected(self) -> "Pair":
        self.client.connect(PATIENCE_S)
        return self

    def named(self, name: str) -> RemoteNetwork:
        return RemoteNetwork(self.client, name, Path(f"{name}.onnx"))

    def is_clean(self) -> bool:
        """Whether every slot that is not in use holds zeros alone."""
        return not any(slot._memory._bytes.any() for slot in self.client._idle)

    def close(self) -> None:
        self.client.close()
        for side in self.sides:
            side.close()
        for end in self.ends:
            end.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    made.serve()
    yield made.connected()
    made.close()


def of(value: int, count: int = 1, shape: tuple[int, int, int] = SMALL) -> Image:
    return np.full((count, *shape), value, np.uint8)


def test_answers_come_back_in_order(pair: Pair) -> None:
    """Also to more images than one slot holds: 16 of the small ones here."""
    images = np.concatenate([of(value) for value in range(15, 55)])
    (found,) = pair.named("small").run(images)
    assert found.tolist() == [[2.0 * value] * 2 for value in range(15, 55)]
    assert pair.client.greeting.most(pair.client.greeting.networks[1]) == 16
    assert pair.named("large").run(of(5, 1, LARGE))[0].tolist() == [[10.0, 10.0]]


def test_an_image_is_written_into_the_shared_memory(pair: Pair) -> None:
    shared: list[bool] = []

    def write(place: Image) -> None:
        shared.append(np.shares_memory(place, memory))
        place[:] = 7

    memory = pair.client._idle[-1]._memory._bytes
    assert pair.named("large").run_placed(write)[0].tolist() == [[14.0, 14.0]]
    assert shared == [True]


def test_nothing_is_left_in_the_shared_memory(pair: Pair) -> None:
    network = pair.named("small")
    network.run(of(5, 9))
    with pytest.raises(RuntimeError, match="small: ValueError: unlucky"):
        network.run(of(13))

    def fail(place: Image) -> None:
        place[:] = 8
        raise OSError("no such photo")

    with pytest.raises(OSError, match="no such photo"):
        network.run_placed(fail)
    assert len(pair.client._idle) == 1
    assert pair.is_clean()
    assert network.run(of(6))[0].tolist() == [[12.0, 12.0]]


def test_an_error_with_a_name_that_is_not_utf_8_ends_its_request_alone(pair: Pair) -> None:
    network = pair.named("small")
    with pytest.raises(RuntimeError, match=r"small: ValueError: caf\?\.onnx"):
        network.run(of(14))
    assert network.run(of(6))[0].tolist() == [[12.0, 12.0]]


def test_many_threads_get_their_own_answers(pair: Pair) -> None:
    values = [value for value in range(256) if value not in {13, 14, 99}]
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda v: pair.named("small").run(of(v))[0][0, 0], values * 4))
    assert found == [2.0 * value for value in values * 4]
    assert len(pair.client._idle) <= 16
    assert pair.is_clean()


def test_the_end_of_the_server_fails_its_requests_and_the_next_one_serves(pair: Pair) -> None:
    network = pair.named("small")
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(network.run, of(99))
        until(lambda: pair.network.held)
        # A slot whose answer is still to come: the socket stays until it is there.
        socket_of = next(iter(pair.sides[0].server._slots)).socket
        pair.sides[0].close()
        socket_of.shutdown(socket.SHUT_RDWR)  # as the end of its process does
        with pytest.raises(WorkerDied, match="ended"):
            waits.result(PATIENCE_S)
    pair.network.held[0].set_result([np.zeros((1, 2), np.float32)])  # late, for nobody
    assert not pair.sides[0].server._slots
    with pytest.raises(WorkerDied, match="starting again"):
        network.run(of(1))
    with pytest.raises(WorkerDied, match="starting again"):
        pair.client.check()
    pair.network = Doubling()
    pair.serve()

    def answers() -> bool:
        try:
            return network.run(of(4))[0].tolist() == [[8.0, 8.0]]
        except WorkerDied:
            return False

    until(answers)
    pair.client.check()


def test_a_server_with_other_networks_is_not_asked(pair: Pair) -> None:
    pair.sides[0].close()
    pair.serve(pack="another")
    with pytest.raises(WorkerDied, match="Send SIGHUP to the service"):
        pair.named("small").run(of(1))


def test_the_end_of_a_client_releases_its_slots(pair: Pair) -> None:
    """Also of one that is being answered."""
    server = pair.sides[0].server
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(pair.named("small").run, of(99))
        pair.named("small").run(of(3))
        until(lambda: pair.network.held and len(server._slots) == 2)
        pair.client.close()
        until(lambda: len(server._slots) == 1)
        (busy,) = server._slots
        assert busy.busy
        server._loop.call_soon_threadsafe(server._lose, busy)
        until(lambda: busy.gone)
        assert busy.memory is not None
        pair.network.held[0].set_result([np.zeros((1, 2), np.float32)])
        until(lambda: not server._slots)
        assert busy.memory is None
        waits.result(PATIENCE_S)


@pytest.mark.parametrize(
    "message",
    [b"m", b"what is this", b"\0" * 2000, Request(0, 0, 1).encoded(), Request(0, 2, 1).encoded(),
     Request(1, 17, 1).encoded(), Request(9, 1, 1).encoded(), Request(0, 65535, 1).encoded()],
)  # fmt: skip
def test_what_no_client_sends_ends_that_slot_alone(pair: Pair, message: bytes) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.settimeout(PATIENCE_S)
    file = new_memory(pair.client.greeting)
    with one, other:
        socket.send_fds(pair.ends[0], [OPEN], [other.fileno()])
        other.close()
        assert one.recv(100_000).startswith(b'{"pack"')
        socket.send_fds(one, [MEMORY], [file])
        one.send(message)
        assert one.recv(100) == b""
    os.close(file)
    assert pair.named("small").run(of(3))[0].tolist() == [[6.0, 6.0]]


def unsealed(greeting: Greeting) -> int:
    file = os.memfd_create("unsealed")
    os.ftruncate(file, greeting.image_bytes + greeting.answer_bytes)
    return file


def a_pipe(_: Greeting) -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


@pytest.mark.parametrize("memory", [unsealed, a_pipe])
def test_memory_that_can_be_resized_is_not_used(
    pair: Pair, memory: Callable[[Greeting], int]
) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.settimeout(PATIENCE_S)
    file = memory(pair.client.greeting)
    with one, other:
        socket.send_fds(pair.ends[0], [OPEN], [other.fileno()])
        other.close()
        one.recv(100_000)
        socket.send_fds(one, [MEMORY], [file])
        assert one.recv(100) == b""
    os.close(file)
    assert pair.named("small").run(of(3))[0].tolist() == [[6.0, 6.0]]


@pytest.mark.parametrize("message", [OPEN, b"?"])
def test_what_opens_no_slot_is_closed(pair: Pair, message: bytes) -> None:
    """Another message, or another file than a socket: the other end of a pipe sees its end."""
    reading, writing = os.pipe()
    socket.send_fds(pair.ends[0], [message], [writing])
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b""
    assert pair.named("small").run(of(3))[0].tolist() == [[6.0, 6.0]]
    assert len(pair.sides[0].server._slots) == 1


def test_two_requests_at_a_time_end_that_slot_alone(pair: Pair) -> None:
    """The second is refused while the first is being answered."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.settimeout(PATIENCE_S)
    greeting = pair.client.greeting
    file = new_memory(greeting)
    SlotMemory(file, greeting).images(greeting.networks[1], 1)[:] = 99
    with one, other:
        socket.send_fds(pair.ends[0], [OPEN], [other.fileno()])
        other.close()
        one.recv(100_000)
        socket.send_fds(one, [MEMORY], [file])
        one.send(Request(1, 1, 1).encoded())
        until(lambda: pair.network.held)
        one.send(Request(1, 1, 2).encoded())
        until(lambda: any(slot.gone for slot in pair.sides[0].server._slots))
        pair.network.held[0].set_result([np.zeros((1, 2), np.float32)])
        assert reply_of(one.recv(100)).number == 1
        assert one.recv(100) == b""
    os.close(file)
    until(lambda: len(pair.sides[0].server._slots) == 1)
    assert pair.named("small").run(of(3))[0].tolist() == [[6.0, 6.0]]


@pytest.fixture
def by_hand() -> Iterator[tuple[NetworkClient, socket.socket]]:
    """A client, and the other end of its slot, of which a test answers the requests."""
    made = Pair()
    greeting = made.serve().server._greeting
    made.sides[0].close()
    with ThreadPoolExecutor(1) as threads:
        connected = threads.submit(made.connected)
        made.ends[1].settimeout(PATIENCE_S)
        _, files, _, _ = socket.recv_fds(made.ends[1], 1, 1)
        theirs = socket.socket(fileno=files[0])
        theirs.settimeout(PATIENCE_S)
        theirs.send(greeting)
        _, files, _, _ = socket.recv_fds(theirs, 1, 1)
        os.close(files[0])
        connected.result(PATIENCE_S)
    with theirs:
        yield made.client, theirs
    made.close()


def test_a_reply_to_another_request_is_not_taken(
    by_hand: tuple[NetworkClient, socket.socket],
) -> None:
    client, theirs = by_hand
    network = RemoteNetwork(client, "small", Path("small.onnx"))
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(network.run, of(3))
        number = request_of(theirs.recv(100)).number
        theirs.send(Reply(RequestStatus.DONE, number - 1).encoded())
        with pytest.raises(WorkerDied, match="answered another request"):
            asked.result(PATIENCE_S)
    assert theirs.recv(100) == b""  # and the slot is not used again


def test_a_slot_whose_reply_is_to_come_is_not_used_again(
    by_hand: tuple[NetworkClient, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, theirs = by_hand

    def give_up(_: bytes) -> Reply:
        raise MemoryError

    monkeypatch.setattr("app.inference.remote.client.reply_of", give_up)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(RemoteNetwork(client, "small", Path("small.onnx")).run, of(3))
        theirs.recv(100)
        theirs.send(b"whatever")
        with pytest.raises(MemoryError):
            asked.result(PATIENCE_S)
    assert theirs.recv(100) == b""
    assert client._idle == []


def test_more_slots_than_there_are_threads_are_refused(pair: Pair) -> None:
    opened = []
    for _ in range(MOST_SLOTS + 1):
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        one.settimeout(PATIENCE_S)
        socket.send_fds(pair.ends[0], [OPEN], [other.fileno()])
        other.close()
        opened.append((one, one.recv(100_000)))
    assert [bool(greeting) for _, greeting in opened].count(False) == 2  # the client has one, too
    for one, _ in opened:
        one.close()
    until(lambda: len(pair.sides[0].server._slots) == 1)
    assert pair.named("small").run(of(3))[0].tolist() == [[6.0, 6.0]]


WITHOUT_FILES = """
import os, resource, socket
from app.errors import WorkerDied
from app.inference.remote.client import NetworkClient
from app.inference.remote.greeting import Greeting, Head, NetworkFacts

facts = NetworkFacts(name="n", shape=(8, 8, 3), heads=(Head(shape=(2,), dtype="float32"),),
                     output_names=("out",))
greeting = Greeting(pack=("p",), provider="p", networks=(facts,)).model_dump_json().encode()
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
client = NetworkClient(ours)

def outcome():
    try:
        client.connect(1.0)
    except WorkerDied as error:
        print(error.detail)
    client._failed_at = -1e9

def with_room_for(files):
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + files, 4096))

with_room_for(0)  # not for a pair of sockets
outcome()
with_room_for(100)
outcome()  # sent, and nobody has greeted
_, files, _, _ = socket.recv_fds(theirs, 1, 1)
socket.socket(fileno=files[0]).send(greeting)
with_room_for(0)  # not for memory
outcome()
"""


@pytest.mark.slow
def test_too_many_open_files_are_named() -> None:
    command = [sys.executable, "-c", WITHOUT_FILES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.splitlines()
    assert first == third
    assert "Too many open files" in first
    assert "ulimit -n" in first
    assert "starting again" in second


def test_the_memory_cannot_be_taken_away(pair: Pair) -> None:
    """A side that shrinks it would end the other one at its next access."""
    file = new_memory(pair.client.greeting)
    for size in (0, 1 << 30):
        with pytest.raises(PermissionError):
            os.ftruncate(file, size)
    assert os.fstat(file).st_nlink == 0  # without a name, for nobody to open
    os.close(file)


@pytest.mark.slow
def test_a_network_answers_as_in_its_own_process(pack: ModelPack, group_image: Image) -> None:
    """The real recogniser, in batches and as the pack has it."""
    spec = pack.recogniser
    side, scale = spec.input_size, PixelScale(spec.mean, spec.std, rgb=spec.colour == "rgb")
    source = read_network(pack.recogniser_path)

    def open_one(count: int) -> OnnxModel:
        graph = device_graph(source, (count, side, side), scale, candidates=False)
        return OnnxModel(pack.recogniser_path, Device.CPU, content=graph.content)

    batched = BatchedModel(open_one, (side, side, 3), (1, 4))
    plain = DirectNetwork(OnnxModel(pack.recogniser_path, Device.CPU), scale)
    crops = np.stack([group_image[40 * n : 40 * n + side, :side] for n in range(9)])
    made = Pair()
    served = [served_network("batched", batched, (side, side, 3)),
              served_network("plain", plain, (side, side, 3))]  # fmt: skip
    made.sides.append(Side(made.ends[1], served, "real"))
    made.connected()
    wanted = batched.run(crops)[0]
    assert np.abs(made.named("batched").run(crops)[0] - wanted).max() < 1e-5
    assert np.abs(made.named("plain").run(crops)[0] - wanted).max() < 1e-3
    made.close()
    batched.close()
