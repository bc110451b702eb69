"""Loads the networks of a model pack and joins them into a pipeline."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort

from app.errors import DeviceError, LikenessError, PackError
from app.faces.detect import ARCHITECTURES, CandidateNetwork, Detector, framing_of
from app.faces.embed import Recogniser
from app.faces.images import network_input
from app.faces.landmarks import SCALE, SIDE, LandmarkRefiner
from app.faces.liveness import LivenessCheck, LivenessNetwork
from app.faces.orientation import OrientationLimits
from app.faces.pipeline import AuxiliaryNetworks, FacePipeline
from app.faces.quality import QualityNetwork
from app.imaging import ImageLimits
from app.inference.batching import BatchedModel
from app.inference.cuda import CPU_PROVIDER, CUDA_PROVIDER, CudaOptions
from app.inference.pack_spec import LivenessSpec, ModelPack, QualitySpec, RecogniserSpec
from app.inference.policy import CPU_POLICY, POLICIES, SchedulePolicy
from app.inference.session import DEFAULT_OPTIONS, Network, OnnxModel
from app.settings import Device
from app.telemetry.logs import log
from app.types import PixelScale


def build_pipeline(
    pack: ModelPack,
    device: Device,
    limits: ImageLimits,
    options: CudaOptions = DEFAULT_OPTIONS,
    orientation: OrientationLimits | None = None,
) -> FacePipeline:
    """Load a pack's networks, to be run as the policy of their provider says. With `orientation`,
    photos in which the detector is not sure of a face are also examined turned. `auto` takes a
    device if it runs all networks, and else the CPU.

    Raises PackError or DeviceError.
    """
    if device is Device.AUTO:
        device = Device.CPU
        if CUDA_PROVIDER in ort.get_available_providers():
            try:
                return _build(pack, Device.CUDA, limits, options, orientation)
            except DeviceError as error:
                log(logging.WARNING, "no usable GPU, running on the CPU", reason=error.detail)
    return _build(pack, device, limits, options, orientation)


def _build(
    pack: ModelPack,
    device: Device,
    limits: ImageLimits,
    options: CudaOptions,
    orientation: OrientationLimits | None,
) -> FacePipeline:
    # Photos run side by side: OpenCV's own threads would only get in one another's way.
    cv2.setNumThreads(1)
    with ExitStack() as undo:
        loader = _Loader(pack, device, options, undo)
        detector = loader.detector()
        recogniser = Recogniser(loader.by_spec("recogniser", pack.recogniser), pack.recogniser)
        pipeline = FacePipeline(
            detector,
            recogniser,
            limits,
            loader.policy,
            batched=loader.batched,
            cpu_nodes=loader.cpu_nodes,
            auxiliary=loader.auxiliary(),
            orientation=orientation,
        )
        undo.pop_all()
        return pipeline


@dataclass
class _Loader:
    """Opens the networks of a pack and runs each once before it is used. `undo` ends the threads
    that it has started."""

    pack: ModelPack
    device: Device
    options: CudaOptions
    undo: ExitStack
    batched: dict[str, BatchedModel] = field(default_factory=dict)
    policy: SchedulePolicy = CPU_POLICY
    # The nodes that networks on a device leave to the CPU, by network.
    cpu_nodes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def detector(self) -> Detector:
        """The detector. To be called first: what it runs on decides the policy of all networks."""
        spec, path = self.pack.detector, self.pack.detector_path
        network = self._open("detector", path)
        self.policy = POLICIES[network.provider]
        whole = self.policy.whole_canvas
        framing = framing_of(network, spec, whole_canvas=whole)
        size, scale = (framing.height, framing.width), ARCHITECTURES[spec.architecture].scale
        # Also where it is batched: it answers all heads of an image with very many faces.
        if not self._runs(network, size, scale) or not self._is_batched(network):
            return Detector(network, spec, whole_canvas=whole)
        batched, levels = self._batch("detector", network, size, scale, candidates=True)
        if not levels:
            return Detector(batched, spec, whole_canvas=whole)
        candidates = CandidateNetwork(batched, levels)
        return Detector(network, spec, whole_canvas=whole, candidates=candidates)

    def for_crops(self, name: str, path: Path, side: int, scale: PixelScale) -> Network:
        """A network that takes square crops of that side."""
        network = self._open(name, path)
        if self._is_batched(network):
            return self._batch(name, network, (side, side), scale)[0]
        self._runs(network, (side, side), scale)
        return network

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

    def _open(self, name: str, path: Path) -> OnnxModel:
        # Any thread may run it, also while another records: so none of its runs is recorded.
        network = OnnxModel(path, self.device, replace(self.options, graphs=False))
        log(logging.INFO, "network loaded", network=name, runs_on=network.provider)
        self._note_nodes(name, network)
        return network

    def _note_nodes(self, name: str, network: Network) -> None:
        self.cpu_nodes.pop(name, None)
        if network.cpu_nodes:
            self.cpu_nodes[name] = network.cpu_nodes

    def _runs(self, network: OnnxModel, size: tuple[int, int], scale: PixelScale) -> bool:
        """Whether a network on a device runs a first image. Raises DeviceError if only the device
        fails on it. If the CPU fails too, the network itself is wrong: the error of its user, such
        as `Detector`, says what is expected."""
        if network.provider != CPU_PROVIDER:
            images = np.zeros((1, *size, 3), np.uint8)
            try:
                network.try_out(network_input(network, images, scale))
            except DeviceError:
                raise
            except Exception:  # noqa: BLE001 - raised again by the user's own first run
                return False
        return True

    def _is_batched(self, network: OnnxModel) -> bool:
        return bool(self.policy.batch_sizes) and network.dynamic_batch

    def _batch(
        self,
        name: str,
        network: OnnxModel,
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
            made = BatchedModel(open_one, (*size, 3), sizes, owners)
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
