"""Loads the networks of a model pack and joins them into a pipeline."""

import logging
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort

from app.errors import DeviceError, LikenessError, PackError
from app.faces.detect import ARCHITECTURES, CandidateNetwork, Detector, framing_of
from app.faces.embed import Recogniser
from app.faces.images import DirectNetwork, drawn_face, network_input
from app.faces.integers import DRAWN_SIDE, check_integers, integer_file
from app.faces.landmarks import SCALE, SIDE, LandmarkRefiner
from app.faces.liveness import LivenessCheck, LivenessNetwork
from app.faces.orientation import OrientationLimits
from app.faces.pipeline import AuxiliaryNetworks, FacePipeline
from app.faces.quality import QualityNetwork
from app.imaging import ImageLimits
from app.inference.batching import BatchedModel
from app.inference.compiled_networks import CompiledNetworks
from app.inference.cpu_engine import INT8_SUFFIX, CpuOptions, openvino_precision
from app.inference.cuda import CPU_PROVIDER, CUDA_PROVIDER, CudaOptions
from app.inference.openvino_model import OpenVinoModel
from app.inference.pack_spec import LivenessSpec, ModelPack, QualitySpec, RecogniserSpec
from app.inference.remote.client import NetworkClient, RemoteNetwork
from app.inference.remote.served import (
    ServedNetwork,
    SubmittingNetwork,
    pack_identity,
    served_network,
)
from app.inference.scheduler import CPU_POLICY, POLICIES, SchedulePolicy
from app.inference.session import DEFAULT_OPTIONS, Network, OnnxModel
from app.settings import CpuPrecision, Device
from app.telemetry.logs import log
from app.types import PixelScale


def build_pipeline(
    pack: ModelPack,
    device: Device,
    limits: ImageLimits,
    options: CudaOptions = DEFAULT_OPTIONS,
    orientation: OrientationLimits | None = None,
    *,
    remote: NetworkClient | None = None,
    cpu: CpuOptions | None = None,
) -> FacePipeline:
    """Load a pack's networks, to be run as the policy of their provider says. With `orientation`,
    photos in which the detector is not sure of a face are also examined turned. `auto` takes a
    device if it runs all networks, and else the CPU. On a CPU the networks run as `cpu` says; None:
    in ONNX Runtime. `remote`: another process has the networks.

    Raises PackError or DeviceError, and WorkerDied where the other process has ended.
    """
    if remote is not None:
        return RemoteLoader(pack, remote).pipeline(limits, orientation)
    if device is Device.AUTO:
        device = Device.CPU
        if CUDA_PROVIDER in ort.get_available_providers():
            try:
                return _build(pack, Device.CUDA, limits, options, orientation)
            except DeviceError as error:
                log(logging.WARNING, "no usable GPU, running on the CPU", reason=error.detail)
    return _build(pack, device, limits, options, orientation, cpu=cpu)


def _build(
    pack: ModelPack,
    device: Device,
    limits: ImageLimits,
    options: CudaOptions,
    orientation: OrientationLimits | None,
    *,
    cpu: CpuOptions | None = None,
) -> FacePipeline:
    with ExitStack() as undo:
        loader = LocalLoader(pack, undo, device, options, cpu=cpu or CpuOptions())
        pipeline = loader.pipeline(limits, orientation)
        undo.pop_all()
        return pipeline


# A detector as the pack has it, beside the one that answers candidates.
HEADS = "detector_heads"


@dataclass
class Loader(ABC):
    """Opens the networks of a pack and runs each once before it is used."""

    pack: ModelPack
    batched: dict[str, BatchedModel] = field(default_factory=dict, kw_only=True)
    policy: SchedulePolicy = field(default=CPU_POLICY, kw_only=True)
    # The nodes that networks on a device leave to the CPU, by network.
    cpu_nodes: dict[str, tuple[str, ...]] = field(default_factory=dict, kw_only=True)
    # What the networks run on, where the recogniser does not say all of it.
    provider: str | None = field(default=None, kw_only=True)

    @abstractmethod
    def detector(self) -> Detector:
        """The detector. To be called first: what it runs on decides the policy of all networks."""

    @abstractmethod
    def for_crops(self, name: str, path: Path, side: int, scale: PixelScale) -> Network:
        """A network that takes square crops of that side."""

    @property
    def remote(self) -> NetworkClient | None:
        """The process that runs the networks, if another one does."""
        return None

    def pipeline(self, limits: ImageLimits, orientation: OrientationLimits | None) -> FacePipeline:
        """All networks, joined."""
        # Photos run side by side: OpenCV's own threads would only get in one another's way.
        cv2.setNumThreads(1)
        detector = self.detector()
        spec = self.pack.recogniser
        recogniser = Recogniser(self.by_spec("recogniser", spec), spec)
        return FacePipeline(
            detector,
            recogniser,
            limits,
            self.policy,
            batched=self.batched,
            cpu_nodes=self.cpu_nodes,
            auxiliary=self.auxiliary(),
            orientation=orientation,
            remote=self.remote,
            provider=self.provider,
        )

    def by_spec(self, name: str, spec: RecogniserSpec | LivenessSpec | QualitySpec) -> Network:
        """A network that takes crops as its part of `pack.toml` says."""
        scale = PixelScale(spec.mean, spec.std, rgb=spec.colour == "rgb")
        return self.for_crops(name, self.pack.path(spec), spec.input_size, scale)

    def auxiliary(self) -> AuxiliaryNetworks:
        """The networks that correct landmarks, and those that rate a face."""
        refiner = None
        if (landmarks := self.pack.landmarks) is not None:
            network = self.for_crops("landmarks", self.pack.path(landmarks), SIDE, SCALE)
            refiner = LandmarkRefiner(network, landmarks)
        live = [
            LivenessNetwork(self.by_spec(f"liveness_{number}", spec), spec)
            for number, spec in enumerate(self.pack.liveness, 1)
        ]
        quality = None
        if (spec := self.pack.quality) is not None:
            side = self.pack.recogniser.input_size
            quality = QualityNetwork(self.by_spec("quality", spec), spec, side)
        return AuxiliaryNetworks(refiner, LivenessCheck(live) if live else None, quality)


@dataclass
class LocalLoader(Loader):
    """Opens them in this process. `undo` ends the threads that it has started, and `serves`: the
    networks are also for other processes, and `served` describes them to those."""

    undo: ExitStack
    device: Device
    options: CudaOptions
    serves: bool = False
    cpu: CpuOptions = field(default_factory=CpuOptions, kw_only=True)
    served: dict[str, ServedNetwork] = field(default_factory=dict)

    def detector(self) -> Detector:
        """The detector. To be called first: what it runs on decides the policy of all networks."""
        spec = self.pack.detector
        if self.device is Device.CPU and self.cpu.precision is CpuPrecision.INT8:
            return self._integer_detector()
        network = self._open("detector", self.pack.detector_path)
        self.policy = POLICIES[network.provider]
        whole = self.policy.whole_canvas
        framing = framing_of(network, spec, whole_canvas=whole)
        size, scale = (framing.height, framing.width), ARCHITECTURES[spec.architecture].scale
        # Also where it is batched: it answers all heads of an image with very many faces.
        if not self._runs(network, size, scale) or not self._is_batched(network):
            made = Detector(network, spec, whole_canvas=whole)
            self._serve("detector", DirectNetwork(network, scale), size)
            return made
        batched, levels = self._batch("detector", network, size, scale, candidates=True)
        self._serve("detector", batched, size, levels)
        if not levels:
            return Detector(batched, spec, whole_canvas=whole)
        self._serve(HEADS, DirectNetwork(network, scale), size)
        candidates = CandidateNetwork(batched, levels)
        return Detector(network, spec, whole_canvas=whole, candidates=candidates)

    def _integer_detector(self) -> Detector:
        spec = self.pack.detector
        network = self._open("detector", integer_file(self.pack))
        if isinstance(network, OpenVinoModel):
            image = drawn_face(DRAWN_SIDE, DRAWN_SIDE)[np.newaxis]
            scale = ARCHITECTURES[spec.architecture].scale
            network.run_once(network_input(network, image, scale))
        made = Detector(network, spec)
        check_integers(made, Detector(OnnxModel(self.pack.detector_path, Device.CPU), spec))
        self.policy = POLICIES[network.provider]
        self.provider = network.provider + INT8_SUFFIX
        return made

    def for_crops(self, name: str, path: Path, side: int, scale: PixelScale) -> Network:
        """A network that takes square crops of that side."""
        network, size = self._open(name, path), (side, side)
        if self._is_batched(network):
            batched = self._batch(name, network, size, scale)[0]
            self._serve(name, batched, size)
            return batched
        if self._runs(network, size, scale) and self.serves:
            self._serve(name, DirectNetwork(network, scale), size)
        return network

    def _serve(self, name: str, network: SubmittingNetwork, size: tuple[int, int],
               levels: tuple[int, ...] = ()) -> None:  # fmt: skip
        if self.serves:
            self.served[name] = served_network(name, network, (*size, 3), levels)

    def _open(self, name: str, path: Path) -> OnnxModel | OpenVinoModel:
        network = self._network(path)
        log(logging.INFO, "network loaded", network=name, file=path.name, runs_on=network.provider)
        self._note_nodes(name, network)
        return network

    def _network(self, path: Path) -> OnnxModel | OpenVinoModel:
        precision = openvino_precision(self.cpu) if self.device is Device.CPU else None
        if precision is None:
            # Any thread may run it, even while another records: so none of its runs is recorded.
            return OnnxModel(path, self.device, replace(self.options, graphs=False))
        kept = None if self.cpu.compiled is None else CompiledNetworks(self.cpu.compiled)
        return OpenVinoModel(path, precision, self.cpu.copies, kept)

    def _note_nodes(self, name: str, network: Network) -> None:
        self.cpu_nodes.pop(name, None)
        if network.cpu_nodes:
            self.cpu_nodes[name] = network.cpu_nodes

    def _runs(
        self, network: OnnxModel | OpenVinoModel, size: tuple[int, int], scale: PixelScale
    ) -> bool:
        """Whether a network on a device, or in OpenVINO, runs a first image. Raises DeviceError if
        only these fail on it, or OpenVINO answers it otherwise than ONNX Runtime. If ONNX Runtime
        fails on the CPU too, the network itself is wrong: the error of its user, such as
        `Detector`, says what is expected."""
        if network.provider != CPU_PROVIDER:
            image = network_input(network, drawn_face(*size)[np.newaxis], scale)
            try:
                network.try_out(image)
            except DeviceError:
                raise
            except Exception:  # noqa: BLE001 - raised again by the user's own first run
                return False
        return True

    def _is_batched(self, network: Network) -> bool:
        return bool(self.policy.batch_sizes) and network.dynamic_batch

    def _batch(
        self,
        name: str,
        network: Network,
        size: tuple[int, int],
        scale: PixelScale,
        *,
        candidates: bool = False,
    ) -> tuple[BatchedModel, tuple[int, ...]]:
        """The network in sessions of a batch size each, and the levels of its candidates."""
        # Only the extras that have a device, or the laboratory, bring `onnx`.
        from app.inference.device_graph import device_graph, read_network  # noqa: PLC0415

        try:
            source = read_network(network.path)
            graphs = {
                count: device_graph(source, (count, *size), scale, candidates=candidates)
                for count in self.policy.batch_sizes
            }
        except ValueError as error:
            raise _not_in_batches(network.path, error) from error

        def open_one(count: int) -> OnnxModel:
            return OnnxModel(network.path, self.device, self.options, graphs[count].content)

        sizes, owners = self.policy.batch_sizes, self.policy.owners
        try:
            # While a run is recorded nothing else may use the device.
            made = BatchedModel(
                open_one, (*size, 3), sizes, owners, all_at_start=self.options.graphs
            )
        except LikenessError:
            raise
        except Exception as error:  # ONNX Runtime raises its own types
            raise _not_in_batches(network.path, error) from error
        self.undo.callback(made.close)
        self.batched[name] = made
        self._note_nodes(name, made)
        return made, graphs[sizes[0]].levels


def _not_in_batches(path: Path, error: Exception) -> PackError:
    return PackError(
        f"{path} cannot be run in batches: {error}. Correct its part of pack.toml, or the network."
    )


@dataclass
class RemoteLoader(Loader):
    """Asks another process for them."""

    client: NetworkClient

    @property
    def remote(self) -> NetworkClient | None:
        return self.client

    def detector(self) -> Detector:
        greeting, spec, path = self.client.greeting, self.pack.detector, self.pack.detector_path
        if greeting.pack != pack_identity(self.pack):
            raise PackError(
                f"The process that runs the networks has those of {greeting.pack[0]}, and the pack "
                f"is {self.pack.name} by now, or was changed. Send SIGHUP to the service, or "
                "restart it."
            )
        self.policy = POLICIES[greeting.provider]
        network = self._network("detector", path)
        if not network.levels:
            return Detector(network, spec, whole_canvas=True)
        heads = RemoteNetwork(self.client, HEADS, path)
        candidates = CandidateNetwork(network, network.levels)
        return Detector(heads, spec, whole_canvas=True, candidates=candidates)

    def for_crops(self, name: str, path: Path, side: int, scale: PixelScale) -> Network:  # noqa: ARG002 (the other process has them)
        return self._network(name, path)

    def _network(self, name: str, path: Path) -> RemoteNetwork:
        network = RemoteNetwork(self.client, name, path)
        if network.cpu_nodes:
            self.cpu_nodes[name] = network.cpu_nodes
        return network
