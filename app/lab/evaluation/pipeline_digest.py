"""The digest of everything that decides what the pipeline answers for a photo: the pack's networks,
the limits, the code, the libraries under it, and the processor or device they compute on."""

import hashlib
import platform
import re
from importlib import metadata
from pathlib import Path

import cv2
import pi_heif
from PIL import features

import app
from app.faces.orientation import OrientationLimits
from app.imaging import ImageLimits
from app.inference.cpu_engine import Cpu
from app.inference.cuda import CPU_PROVIDER, gpu_name
from app.inference.pack_spec import ModelPack

ANSWER_SHAPING = ("imaging/*.py", "faces/*.py", "inference/session.py", "inference/scheduler.py",
                  "types.py")  # fmt: skip
# On a device the networks are rewritten, and photos run in batches.
SHAPING_ON_DEVICES = ("inference/batching.py", "inference/bound.py", "inference/cuda.py",
                      "inference/device_graph.py")  # fmt: skip
# Names of distributions. Most libraries come as one of several: for a GPU, or without windows.
LIBRARIES = r"numpy|onnxruntime(-.+)?|opencv-.+|pi-heif|pillow(-.+)?"
LIBRARIES_ON_DEVICES = r"onnx|nvidia-.+|tensorrt(-.+)?"
# Codecs that Pillow may take from the system, where they are updated without it.
CODECS = ("jpg", "libjpeg_turbo", "zlib", "webp", "avif")


def pipeline_digest(
    pack: ModelPack,
    limits: ImageLimits,
    orientation: OrientationLimits | None = None,
    provider: str = CPU_PROVIDER,
) -> str:
    """SHA-256 in hexadecimal of all that decides what the pipeline answers for a photo.
    `provider`: what the networks run on."""
    networks = {"detector", "landmarks", "recogniser", "quality"}
    code, libraries = [*ANSWER_SHAPING], LIBRARIES
    machine: list[object] = [platform.machine(), *_processor()]
    if provider != CPU_PROVIDER:
        code += SHAPING_ON_DEVICES
        libraries += f"|{LIBRARIES_ON_DEVICES}"
        machine.append(gpu_name())
    parts = [
        pack.model_dump_json(include=networks),
        limits,
        orientation,
        provider,
        _versions(libraries),
        _codec_versions(),
        machine,
    ]
    digest = hashlib.sha256(repr(parts).encode())
    root = Path(app.__file__).parent
    for pattern in code:
        for file in sorted(root.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _versions(names: str) -> list[tuple[str, str]]:
    """The name and version of each installed distribution whose name fits the pattern."""
    found = []
    for distribution in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if re.fullmatch(names, name):
            found.append((name, distribution.version))
    return sorted(found)


def _codec_versions() -> list[object]:
    """What the libraries that decode photos say of the codecs they were built with or use."""
    codecs: list[object] = [(name, features.version(name)) for name in CODECS]
    return [*codecs, pi_heif.libheif_info(), cv2.getBuildInformation()]


def _processor() -> tuple[str, list[str]]:
    """Vendor and instructions: engines choose by them how they compute, and so how they round."""
    cpu = Cpu.of_this_machine()
    return cpu.vendor, sorted(cpu.flags)
