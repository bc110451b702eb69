"""Loads the networks of a model pack and joins them into a pipeline."""

import logging
from pathlib import Path

import cv2

from app.faces.detect import Detector
from app.faces.embed import Recogniser
from app.faces.landmarks import LandmarkRefiner
from app.faces.liveness import LivenessCheck, LivenessNetwork
from app.faces.orientation import OrientationLimits
from app.faces.pipeline import AuxiliaryNetworks, FacePipeline
from app.faces.quality import QualityNetwork
from app.imaging import ImageLimits
from app.inference.batching import BatchedModel
from app.inference.cuda import CudaOptions
from app.inference.pack_spec import ModelPack
from app.inference.policy import POLICIES
from app.inference.session import DEFAULT_OPTIONS, Network, OnnxModel
from app.settings import Device
from app.telemetry.logs import log


def build_pipeline(
    pack: ModelPack,
    device: Device,
    limits: ImageLimits,
    options: CudaOptions = DEFAULT_OPTIONS,
    orientation: OrientationLimits | None = None,
) -> FacePipeline:
    """Load a pack's networks and let them run as their provider's policy says; with `orientation`
    photos whose first look is doubtful are looked at turned, too.

    Raises PackError or DeviceError.
    """
    networks = {
        "detector": _load("detector", pack.detector_path, device, options),
        "recogniser": _load("recogniser", pack.recogniser_path, device, options),
    }
    if pack.landmarks is not None:
        path = pack.path(pack.landmarks)
        networks["landmarks"] = _load("landmarks", path, device, options)
    policy = POLICIES[networks["recogniser"].provider]
    # Photos run side by side: OpenCV's own threads would only get in one another's way.
    cv2.setNumThreads(1)
    batched = {
        name: BatchedModel(network, policy.batch_sizes, policy.batch_wait_s)
        for name, network in networks.items()
        if policy.batch_sizes and network.dynamic_batch
    }
    running: dict[str, Network] = {**networks, **batched}
    return FacePipeline(
        Detector(running["detector"], pack.detector, whole_canvas=policy.whole_canvas),
        Recogniser(running["recogniser"], pack.recogniser),
        limits,
        policy,
        batched=batched,
        auxiliary=_auxiliary(pack, device, running.get("landmarks")),
        orientation=orientation,
    )


def _load(
    name: str, path: Path, device: Device, options: CudaOptions = DEFAULT_OPTIONS
) -> OnnxModel:
    network = OnnxModel(path, device, options)
    log(logging.INFO, "network loaded", network=name, runs_on=network.provider)
    return network


def _auxiliary(pack: ModelPack, device: Device, landmarks: Network | None) -> AuxiliaryNetworks:
    """Liveness and quality without options: these run batches of any size, and each size would be
    recorded or built again."""
    refiner = None
    if pack.landmarks is not None:
        assert landmarks is not None, "loaded with the pack"
        refiner = LandmarkRefiner(landmarks, pack.landmarks)
    live = [
        LivenessNetwork(_load("liveness", pack.path(spec), device), spec) for spec in pack.liveness
    ]
    quality = None
    if pack.quality is not None:
        network = _load("quality", pack.path(pack.quality), device)
        quality = QualityNetwork(network, pack.quality, pack.recogniser.input_size)
    return AuxiliaryNetworks(refiner, LivenessCheck(live) if live else None, quality)
