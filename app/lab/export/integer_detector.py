"""A detector in 8-bit integers, for CPUs that multiply those faster than float32 numbers."""

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from app.errors import LikenessError
from app.faces.agreement import same_faces
from app.faces.detect import ARCHITECTURES, Detector, framing_of, letterbox
from app.faces.images import to_blob
from app.inference.pack_spec import DetectorSpec
from app.inference.session import OnnxModel
from app.lab.export.faces import photos_in
from app.lab.export.graph import PRODUCER, read_model
from app.lab.export.parity import ExportError, ParityError, publish
from app.lab.export.precision import with_scales_a_channel
from app.settings import Device
from app.types import Image

MINIMUM_PHOTOS, MAXIMUM_PHOTOS = 20, 200
MINIMUM_FACES = 20  # in the photos of the proof
# Without Relu the network is slower than in float32, and ConvTranspose has no kernel in integers.
QUANTISED = ("Conv", "Add", "Relu")
# The first convolutions have few channels: float32 kernels are faster there.
FIRST_IN_FLOAT = 3
# An integer detector has to find as many of the faces that the source finds, and may find so many
# others, as shares of them. Faces near the score threshold are found by one alone.
LOWEST_RECALL, MOST_OTHERS = 0.95, 0.05
# The median distance of a landmark, as a share of the shorter side of the face's box.
FARTHEST_MEDIAN = 0.02


@dataclass(frozen=True, slots=True)
class CalibrationPhotos:
    """Photos of people: those that the ranges of values are measured on, and those that the result
    is compared with its source on."""

    ranges: tuple[Path, ...]
    proof: tuple[Path, ...]

    @classmethod
    def of_folders(cls, ranges: Path, proof: Path) -> "CalibrationPhotos":
        """Those in and below two folders, at most MAXIMUM_PHOTOS of each, taken evenly over their
        names. Raises ExportError for fewer than MINIMUM_PHOTOS."""
        return cls(_enough(ranges, MAXIMUM_PHOTOS), _enough(proof, MAXIMUM_PHOTOS))

    @classmethod
    def of_folder(cls, folder: Path) -> "CalibrationPhotos":
        """Those in and below one folder, for the one and the other in turn. Raises ExportError for
        fewer than twice MINIMUM_PHOTOS."""
        found = _enough(folder, 2 * MAXIMUM_PHOTOS, 2 * MINIMUM_PHOTOS)
        return cls(found[::2], found[1::2])


def _enough(folder: Path, most: int, least: int = MINIMUM_PHOTOS) -> tuple[Path, ...]:
    found = photos_in(folder, most)
    if len(found) < least:
        raise ExportError(f"{folder} has {len(found)} photos; at least {least} are needed")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Ranges:
    """What the ranges of values were measured on: the number of photos, the SHA-256 of their
    digests in order, and the version of ONNX Runtime."""

    photos: int
    sha256: str
    onnxruntime: str


@dataclass(frozen=True, slots=True)
class DetectorAgreement:
    """How an integer detector answers photos that the source finds `faces` in: how many of them it
    finds, and how many others; the lowest overlap of two boxes (IoU); the median and the largest
    mean distance of a face's landmarks, as shares of the shorter side of its box."""

    photos: int
    faces: int
    found: int
    others: int
    lowest_iou: float
    median_distance: float
    largest_distance: float

    def __str__(self) -> str:
        return (
            f"{self.photos} photos: {self.found} of {self.faces} faces found, {self.others} "
            f"others; lowest overlap of boxes {self.lowest_iou:.2f}; landmarks differ by "
            f"{self.median_distance:.4f} of the face's side in the median, by "
            f"{self.largest_distance:.4f} at most"
        )


@dataclass(frozen=True, slots=True)
class IntegerDetector:
    """What was written, what its ranges come from, and how it compares with its source."""

    sha256: str
    ranges: Ranges
    agreement: DetectorAgreement


def export_integer_detector(
    source: Path, spec: DetectorSpec, photos: CalibrationPhotos, out: Path
) -> IntegerDetector:
    """Write the detector at `source` with 8-bit weights and activations to `out`, once it finds the
    same faces. `spec` says how the detector is run.

    Raises ExportError: a photo that cannot be read, too few faces, or another answer.
    """
    read_model(source)  # what is no network is refused here, by its name
    ranges = Ranges(len(photos.ranges), _digest(photos.ranges), ort.__version__)
    model = _quantised(source, spec, photos.ranges)
    agreements: list[DetectorAgreement] = []

    def prove(candidate: Path) -> None:
        agreements.append(_prove(source, candidate, spec, photos.proof))

    return IntegerDetector(publish(model, out, prove), ranges, agreements[0])


def _digest(photos: Sequence[Path]) -> str:
    digests = (hashlib.sha256(path.read_bytes()).hexdigest() for path in photos)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _read(path: Path) -> Image:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ExportError(f"{path} is not a photo that can be read")
    return np.asarray(image, np.uint8)


def provenance(made: IntegerDetector) -> dict[str, str | int]:
    """What pack.toml says of it beside its file."""
    ranges = made.ranges
    return {
        "sha256": made.sha256,
        "photos": ranges.photos,
        "photos_sha256": ranges.sha256,
        "onnxruntime": ranges.onnxruntime,
        "proof": str(made.agreement),
    }


# --- quantisation ----------------------------------------------------------------------------


class _Inputs(CalibrationDataReader):  # type: ignore[misc]
    """The input of a detector for each photo, one photo in memory at a time."""

    def __init__(self, model: OnnxModel, spec: DetectorSpec, photos: Sequence[Path]) -> None:
        self._name = model.input_name
        self._framing = framing_of(model, spec, whole_canvas=False)
        self._scale = ARCHITECTURES[spec.architecture].scale
        self._photos = iter(photos)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        path = next(self._photos, None)
        if path is None:
            return None
        image, scale = _read(path), self._scale
        canvas = letterbox(image.shape, self._framing).drawn(image)
        return {self._name: to_blob(canvas[np.newaxis], scale.mean, scale.std, rgb=scale.rgb)}


def _quantised(source: Path, spec: DetectorSpec, photos: Sequence[Path]) -> onnx.ModelProto:
    network = _open(source)
    if network.takes_pixels:
        raise ExportError(f"{source} takes uint8 pixels: give the network with float32 input")
    if not network.dynamic_batch:
        raise ExportError(
            f"{source} takes one size of batch: export_onnx.py detector makes it variable"
        )
    _detector(source, spec)  # what is no such detector is refused here
    with tempfile.TemporaryDirectory() as folder:
        newer, ready, out = (Path(folder) / f"{name}.onnx" for name in ("newer", "ready", "out"))
        onnx.save(with_scales_a_channel(read_model(source)), newer)
        quant_pre_process(newer, ready, skip_symbolic_shape=True)
        with redirect_stdout(StringIO()):  # it prints its progress
            quantize_static(
                ready,
                out,
                _Inputs(network, spec, photos),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                nodes_to_exclude=_in_float(onnx.load(ready).graph),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        model = onnx.load(out)
    model.producer_name, model.producer_version, model.doc_string = PRODUCER, "", ""
    del model.metadata_props[:]  # of the tools
    return model


def _in_float(graph: onnx.GraphProto) -> list[str]:
    """The convolutions that stay float32: the first ones, and the last before each output, whose
    rounding would move boxes and landmarks."""
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    producers = {output: node for node in graph.node for output in node.output}
    heads, waiting = set[str](), [output.name for output in graph.output]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None:
            continue
        if node.op_type == "Conv":
            heads.add(node.name)
        else:
            waiting.extend(node.input)
    return [*convolutions[:FIRST_IN_FLOAT], *sorted(heads - set(convolutions[:FIRST_IN_FLOAT]))]


# --- proof -----------------------------------------------------------------------------------


def _open(path: Path) -> OnnxModel:
    try:
        return OnnxModel(path, Device.CPU)
    except LikenessError as error:
        raise ExportError(error.detail) from error


def _detector(path: Path, spec: DetectorSpec) -> Detector:
    try:
        return Detector(_open(path), spec)
    except LikenessError as error:
        raise ExportError(error.detail) from error


def _prove(
    source: Path, candidate: Path, spec: DetectorSpec, photos: Sequence[Path]
) -> DetectorAgreement:
    """Raise ParityError unless both detectors find the same faces in the photos."""
    theirs, ours = (_detector(path, spec) for path in (source, candidate))
    faces = found = others = 0
    overlaps, distances = list[float](), list[float]()
    for path in photos:
        image = _read(path)
        expected, actual = theirs.look(image), ours.look(image)
        pairs = same_faces(expected, actual)
        faces, found = faces + len(expected), found + len(pairs)
        others += len(actual) - len(pairs)
        overlaps += [pair.iou for pair in pairs]
        distances += [pair.distance for pair in pairs]
    if faces < MINIMUM_FACES:
        raise ExportError(
            f"{faces} faces were found in the photos for the proof; {MINIMUM_FACES} are needed. "
            "Add photos of people."
        )
    agreement = DetectorAgreement(
        len(photos), faces, found, others,
        lowest_iou=min(overlaps, default=0.0),
        median_distance=float(np.median(distances)) if distances else 0.0,
        largest_distance=max(distances, default=0.0),
    )  # fmt: skip
    _accept(agreement)
    return agreement


def _accept(found: DetectorAgreement) -> None:
    if found.found < LOWEST_RECALL * found.faces:
        raise ParityError(
            f"in integers it finds {found.found} of the {found.faces} faces that it finds in "
            f"float32; {LOWEST_RECALL:.0%} are required"
        )
    if found.others > MOST_OTHERS * found.faces:
        raise ParityError(
            f"in integers it finds {found.others} faces more, beside the {found.faces} that it "
            f"finds in float32; {MOST_OTHERS:.0%} are allowed"
        )
    if found.median_distance > FARTHEST_MEDIAN:
        raise ParityError(
            f"in integers its landmarks move by {found.median_distance:.3f} of the face's side in "
            f"the median; {FARTHEST_MEDIAN} is allowed"
        )
