"""Batches made across threads: the same answers as alone, and failures that stay alone."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from app.errors import DeviceError, WorkerDied
from app.faces.detect import ARCHITECTURES, CandidateNetwork, Detector
from app.faces.embed import Recogniser
from app.inference.batching import BatchedModel
from app.inference.device_graph import device_graph, read_network
from app.inference.gathering_batch import size_for
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import FloatArray, Image, PixelScale
from tests.waiting import PATIENCE_S, until

SIZES = (1, 4, 8)
SIDE = 112


@pytest.fixture(scope="module")
def model(pack: ModelPack) -> OnnxModel:
    return OnnxModel(pack.recogniser_path, Device.CPU)


@pytest.fixture(scope="module")
def open_network(pack: ModelPack) -> Callable[[int], OnnxModel]:
    spec = pack.recogniser
    scale = PixelScale(spec.mean, spec.std, rgb=spec.colour == "rgb")
    source = read_network(pack.recogniser_path)

    def open_one(count: int) -> OnnxModel:
        graph = device_graph(source, (count, SIDE, SIDE), scale, candidates=False)
        return OnnxModel(pack.recogniser_path, Device.CPU, content=graph.content)

    return open_one


@pytest.fixture(scope="module")
def batched(open_network: Callable[[int], OnnxModel]) -> Iterator[BatchedModel]:
    batched = BatchedModel(open_network, (SIDE, SIDE, 3), SIZES, owners=2)
    yield batched
    batched.close()


@pytest.fixture(scope="module")
def crops(group_image: Image) -> Image:
    """40 crops of real pixels, faces and what is between them."""
    corners = np.random.default_rng(5).integers(0, 700, (40, 2))
    return np.stack([group_image[y : y + SIDE, x : x + SIDE] for y, x in corners])


def cosines(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.asarray((a * b).sum(axis=1), np.float32)


@pytest.mark.parametrize(
    "count",
    [1, 3, 5, 9, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4, 8, 16, 17, 33, 40))],
)
def test_batched_equals_single(
    pack: ModelPack, model: OnnxModel, batched: BatchedModel, crops: Image, count: int
) -> None:
    alone = Recogniser(model, pack.recogniser)
    single = np.concatenate([alone.embed(crops[i : i + 1])[0] for i in range(count)])
    together = Recogniser(batched, pack.recogniser).embed(crops[:count])[0]
    assert cosines(single, together).min() >= 0.99999


def test_every_caller_gets_its_own(
    pack: ModelPack, model: OnnxModel, batched: BatchedModel, crops: Image
) -> None:
    """Callers with one to five faces at once: any mix, any padding, the same vectors."""
    alone, recogniser = Recogniser(model, pack.recogniser), Recogniser(batched, pack.recogniser)
    cuts = [slice(n, n + 1 + n % 5) for n in range(12)]
    barrier = threading.Barrier(len(cuts))

    def ask(cut: slice) -> FloatArray:
        barrier.wait(PATIENCE_S)
        return recogniser.embed(crops[cut])[0]

    with ThreadPoolExecutor(len(cuts)) as threads:
        answers = list(threads.map(ask, cuts))
    for cut, answer in zip(cuts, answers, strict=True):
        assert cosines(answer, alone.embed(crops[cut])[0]).min() >= 0.99999


@pytest.mark.slow
def test_a_detector_s_photos_share_batches(
    pack: ModelPack, group_image: Image, astronaut_image: Image
) -> None:
    """Its candidates are found in the graph, and are the faces that its heads give."""
    network = OnnxModel(pack.detector_path, Device.CPU)
    side = pack.detector.input_size
    scale = ARCHITECTURES[pack.detector.architecture].scale
    source = read_network(pack.detector_path)
    graphs = {n: device_graph(source, (n, side, side), scale, candidates=True) for n in (1, 4)}

    def open_one(count: int) -> OnnxModel:
        return OnnxModel(network.path, Device.CPU, content=graphs[count].content)

    alone = Detector(network, pack.detector, whole_canvas=True)
    batched = BatchedModel(open_one, (side, side, 3), (1, 4))
    candidates = CandidateNetwork(batched, graphs[1].levels)
    together = Detector(network, pack.detector, whole_canvas=True, candidates=candidates)
    photos = [group_image, astronaut_image, np.ascontiguousarray(group_image[:, 300:700])]
    photos.append(np.ascontiguousarray(group_image[:, 500:]))
    with ThreadPoolExecutor(len(photos)) as threads:
        found = list(threads.map(together.detect, photos))
    for photo, mine in zip(photos, found, strict=True):
        expected = alone.detect(photo)
        assert len(mine) == len(expected) > 0
        assert np.abs(mine.boxes - expected.boxes).max() < 0.05
        assert mine.landmarks is not None
        assert expected.landmarks is not None
        assert np.abs(mine.landmarks - expected.landmarks).max() < 0.05
    batched.close()


def test_every_size_of_every_owner_is_warm_before_the_first_request(
    open_network: Callable[[int], OnnxModel],
) -> None:
    batched = BatchedModel(open_network, (SIDE, SIDE, 3), SIZES, owners=2)
    assert batched.batches == dict.fromkeys(SIZES, 2)
    batched.close()


@pytest.mark.slow
def test_a_session_sees_one_size_only(
    open_network: Callable[[int], OnnxModel], crops: Image
) -> None:
    """The sessions' input has no free batch: another size would be refused."""
    seen: dict[int, set[int]] = {}

    def open_one(count: int) -> OnnxModel:
        network = open_network(count)
        run, sizes = network.run, seen.setdefault(count, set())

        def noted(batch: NDArray[Any]) -> list[FloatArray]:
            sizes.add(len(batch))
            return run(batch)

        network.run = noted  # type: ignore[method-assign]
        return network

    batched = BatchedModel(open_one, (SIDE, SIDE, 3), SIZES)
    for count in (1, 2, 3, 7, 8, 9, 23):
        batched.run(crops[:count])
    batched.close()
    assert seen == {size: {size} for size in SIZES}


def test_images_of_another_shape_are_refused(batched: BatchedModel, crops: Image) -> None:
    with pytest.raises(ValueError, match=r"images of \(50, 50, 3\) uint8; .*\(112, 112, 3\)"):
        batched.run(np.zeros((1, 50, 50, 3), np.uint8))
    assert batched.run(crops[:2])[0].shape == (2, 192)


def test_what_cannot_run_is_raised_when_it_is_opened(
    open_network: Callable[[int], OnnxModel],
) -> None:
    """Also from the owner's thread; the threads that did start are ended."""
    before = {thread for thread in threading.enumerate() if thread.name == "network"}
    with pytest.raises(Exception, match="Got invalid dimensions"):
        BatchedModel(open_network, (SIDE, SIDE + 1, 3), (1, 4), owners=2)
    assert {one for one in threading.enumerate() if one.name == "network"} <= before


class Fragile:
    """A network with injected faults: it fails on 13 and kills its thread on 66."""

    path, provider, output_names = Path("fragile.onnx"), "CPUExecutionProvider", ["out"]
    cpu_nodes = ()

    def __init__(self) -> None:
        self.may_run = threading.Event()
        self.may_run.set()

    def try_out(self, batch: NDArray[Any]) -> None:
        self.run(batch)

    def run(self, batch: NDArray[Any]) -> list[FloatArray]:
        assert self.may_run.wait(PATIENCE_S)
        if (batch == 66).any():
            raise SystemExit
        if (batch == 13).any():
            raise ValueError("unlucky")
        return [batch[:, 0, 0, :1].astype(np.float32) * 2]


@pytest.fixture
def network() -> Fragile:
    return Fragile()


@pytest.fixture
def fragile(network: Fragile) -> Iterator[BatchedModel]:
    batched = BatchedModel(lambda _: cast("OnnxModel", network), (1, 1, 3), SIZES)
    yield batched
    network.may_run.set()
    batched.close()


def images(*values: int) -> Image:
    return np.repeat(np.array(values, np.uint8), 3).reshape(-1, 1, 1, 3)


def waiting(batched: BatchedModel) -> int:
    gathering = batched._gathering
    return gathering.taken if gathering is not None else -1


def test_while_a_batch_runs_the_next_one_gathers(fragile: BatchedModel, network: Fragile) -> None:
    network.may_run.clear()
    before = dict(fragile.batches)
    with ThreadPoolExecutor(5) as threads:
        first = threads.submit(fragile.run, images(9))
        until(lambda: not first.running() or waiting(fragile) == 0)
        until(lambda: not fragile._free)  # it is being run, and lasts
        rest = [threads.submit(fragile.run, images(n)) for n in (1, 2, 3, 4)]
        until(lambda: waiting(fragile) == 4)
        network.may_run.set()
        assert [one.result(PATIENCE_S)[0].tolist() for one in rest] == [
            [[2.0]], [[4.0]], [[6.0]], [[8.0]],
        ]  # fmt: skip
        assert first.result(PATIENCE_S)[0].tolist() == [[18.0]]
    ran = {size: fragile.batches[size] - before[size] for size in SIZES}
    assert ran == {1: 1, 4: 1, 8: 0}


def test_an_image_is_written_where_the_network_reads_it(
    fragile: BatchedModel, network: Fragile
) -> None:
    """The place has pixels of an earlier one, and no copy of the new ones is made."""
    fragile.run(images(1, 2, 3))
    places: list[Image] = []
    read: list[NDArray[Any]] = []
    run = network.run
    network.run = lambda batch: (read.append(batch), run(batch))[1]  # type: ignore[method-assign,func-returns-value]

    def write(place: Image) -> None:
        places.append(place)
        place[:] = 9

    assert fragile.run_placed(write)[0].tolist() == [[18.0]]
    assert np.shares_memory(places[0], read[0])
    assert places[0].shape == (1, 1, 3)


def test_a_place_whose_writer_fails_delays_nobody(fragile: BatchedModel) -> None:
    def fail(place: Image) -> None:
        raise ValueError("no such photo")

    with pytest.raises(ValueError, match="no such photo"):
        fragile.run_placed(fail)
    assert fragile.run(images(4))[0].tolist() == [[8.0]]


def test_a_writer_that_takes_too_long_costs_its_batch_no_place_for_ever(
    fragile: BatchedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As often as there are buffers: each gathers again once nobody writes into it any more."""
    may_end = threading.Event()

    def hang(place: Image) -> None:
        assert may_end.wait(PATIENCE_S)

    monkeypatch.setattr("app.inference.batching.ANSWER_TIMEOUT_S", 0.05)
    with ThreadPoolExecutor(2) as threads:
        for _ in fragile._buffers:
            gathering = until(lambda: fragile._gathering)
            hanging = threads.submit(fragile.run_placed, hang)
            until(lambda batch=gathering: batch.writing)
            # For this one the batch is collected, if it was not when its owner began.
            beside = threads.submit(fragile.run, images(1))
            until(lambda batch=gathering: batch.refused)
            may_end.set()
            with pytest.raises(WorkerDied):
                hanging.result(PATIENCE_S)
            beside.exception(PATIENCE_S)
            may_end.clear()
    monkeypatch.setattr("app.inference.batching.ANSWER_TIMEOUT_S", PATIENCE_S)
    until(lambda: len(fragile._free) == len(fragile._buffers) - 1)
    assert fragile.run(images(4))[0].tolist() == [[8.0]]


def test_one_bad_image_fails_alone_in_its_batch(fragile: BatchedModel, network: Fragile) -> None:
    network.may_run.clear()
    with ThreadPoolExecutor(4) as threads:
        threads.submit(fragile.run, images(0))
        until(lambda: not fragile._free)
        one, bad, other = (threads.submit(fragile.run, images(v)) for v in (1, 13, 2))
        until(lambda: waiting(fragile) == 3)
        network.may_run.set()
        assert one.result(PATIENCE_S)[0].tolist() == [[2.0]]
        assert other.result(PATIENCE_S)[0].tolist() == [[4.0]]
        with pytest.raises(ValueError, match="unlucky"):
            bad.result(PATIENCE_S)


def test_more_images_than_a_batch_holds_wait_for_the_next(
    fragile: BatchedModel, network: Fragile
) -> None:
    """Several callers, each with more than fits: nobody waits for a place that nobody frees."""
    many = images(*range(1, 12), *range(20, 33))
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: fragile.run(many)[0][:, 0].tolist(), range(6)))
    assert answers == [[2.0 * n for n in many[:, 0, 0, 0].tolist()]] * 6


def test_no_more_padding_than_images() -> None:
    chosen = [size_for(n, (1, 8, 32)) for n in (1, 3, 4, 8, 9, 15, 16, 31, 32)]
    assert chosen == [1, 1, 8, 8, 8, 8, 32, 32, 32]


class Slow(Fragile):
    """A network whose first run lasts until it may end, and may fail."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.may_start, self.fails = threading.Event(), fails
        self.sizes: list[int] = []

    def try_out(self, batch: NDArray[Any]) -> None:
        if len(batch) > 1:
            assert self.may_start.wait(PATIENCE_S)
            if self.fails:
                raise DeviceError("no memory for so many")
        self.run(batch)

    def run(self, batch: NDArray[Any]) -> list[FloatArray]:
        self.sizes.append(len(batch))
        return super().run(batch)


def test_requests_are_answered_before_larger_batches_are_ready() -> None:
    network = Slow()
    batched = BatchedModel(
        lambda _: cast("OnnxModel", network), (1, 1, 3), SIZES, owners=2, all_at_start=False
    )
    assert batched.run(images(1, 2, 3, 4))[0].tolist() == [[2.0], [4.0], [6.0], [8.0]]
    assert set(network.sizes) == {1}
    network.may_start.set()
    until(lambda: all(set(each) == set(SIZES) for each in batched._sessions))
    batched.run(images(1, 2, 3, 4))
    assert network.sizes[-1] == 4
    batched.close()


def test_a_size_that_does_not_run_leaves_the_smaller_ones() -> None:
    network = Slow(fails=True)
    network.may_start.set()
    batched = BatchedModel(
        lambda _: cast("OnnxModel", network), (1, 1, 3), SIZES, all_at_start=False
    )
    until(lambda: not any(one.name == "network-warm-up" and one.is_alive()
                          for one in batched._threads))  # fmt: skip
    assert batched.run(images(5, 6, 7, 8))[0].tolist() == [[10.0], [12.0], [14.0], [16.0]]
    assert set(network.sizes) == {1}
    batched.close()


def test_a_dead_owner_fails_its_waiters_at_once_and_is_replaced(fragile: BatchedModel) -> None:
    with pytest.raises(WorkerDied):
        fragile.run(images(66))
    assert fragile.run(images(3))[0].tolist() == [[6.0]]


def test_nobody_waits_for_a_closed_network(network: Fragile) -> None:
    batched = BatchedModel(lambda _: cast("OnnxModel", network), (1, 1, 3), SIZES)
    batched.close()
    with pytest.raises(WorkerDied):
        batched.run(images(1))
