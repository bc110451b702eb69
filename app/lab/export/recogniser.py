"""Any ArcFace recogniser -> the ONNX file that a model pack holds, proven on real faces; and the
conversion of pixels to its input, as a part of the network.

Such a network takes (batch, height, width, 3) uint8 BGR, a quarter of the bytes to be moved to a
GPU; the graph does colour order and normalisation."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from app.inference import device_graph
from app.lab.export import parity
from app.lab.export.faces import Normalisation
from app.lab.export.graph import PRODUCER, converted, read_model, simplified, without_prelu
from app.lab.export.parity import ExportError, FloatArray, publish
from app.lab.export.precision import MINIMUM_COSINE, Precision, to_half, to_integers
from app.types import PixelScale

# Dividing and multiplying by the inverse round differently, in the last bit of each value.
TOLERANCE = 1e-3
PROOF_BATCH = 3
PROOF_SIDE = 256


def export_pixels(source: Path, out: Path, given: Normalisation) -> float:
    """Write the network at `source` to `out` with uint8 pixels as its input, once it is proven to
    answer the same; returns the largest difference. Raises ExportError."""
    folded = fold_pixels(read_model(source), given)
    measured: list[float] = []

    def prove(candidate: Path) -> None:
        measured.append(_prove(source, candidate, given))

    publish(folded, out, prove)
    return measured[0]


def fold_pixels(source: onnx.ModelProto, given: Normalisation) -> onnx.ModelProto:
    """A copy of a model with one float32 (batch, 3, height, width) input that takes pixels.

    Raises ExportError for another input.
    """
    try:
        model = device_graph.fold_pixels(source, PixelScale(given.mean, given.std, given.rgb))
    except ValueError as error:
        raise ExportError(str(error)) from error
    model.producer_name = PRODUCER
    return model


def _prove(source: Path, candidate: Path, given: Normalisation) -> float:
    session = parity.open_session(source)
    batch, _, height, width = (axis if isinstance(axis, int) else None
                               for axis in session.get_inputs()[0].shape)  # fmt: skip
    size = (batch or PROOF_BATCH, height or PROOF_SIDE, width or PROOF_SIDE, 3)
    pixels = np.random.default_rng(3).integers(0, 256, size, dtype=np.uint8)
    blob = given.apply(np.ascontiguousarray(pixels[..., ::-1]))
    expected = parity.run(session, blob)
    actual = parity.run(parity.open_session(candidate), pixels)
    largest = max(1.0, *(float(np.abs(head).max()) for head in expected))
    return parity.prove_same_outputs(actual, expected, TOLERANCE * largest)


# Where a network's output is made to have length 1, or its numbers are rounded, the lengths differ.
ANY_LENGTH = float("inf")
BATCH_PROOF = 3
# Of the largest number of an embedding: kernels for batches add in another order.
BATCH_TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Options:
    """What the export should be. `pixels`: takes uint8 BGR (batch, size, size, 3); `unit`: answers
    vectors of length 1, so that their length is no measure of quality; `batch`: fixed, or
    None for any; `opset`: of operators, or None for the source's; `simplify`: constants
    computed and batch normalisations folded into their convolutions; `keep_prelu`: not rewritten
    for ONNX Runtime's CPU kernels, which only fp32 is."""

    pixels: bool = False
    unit: bool = False
    precision: Precision = Precision.FP32
    batch: int | None = None
    opset: int | None = None
    minimum_cosine: float | None = None
    simplify: bool = False
    keep_prelu: bool = False


@dataclass(frozen=True, slots=True)
class SourceRecogniser:
    """A recogniser as it came: its float32 graph, what it answers to (n, 3, size, size) float32,
    and how pixels are made into that."""

    model: onnx.ModelProto
    answer: Callable[[FloatArray], FloatArray]
    normalisation: Normalisation

    @property
    def size(self) -> int:
        """Side of the faces it takes. Raises ExportError where the graph does not fix it."""
        dimensions = self.model.graph.input[0].type.tensor_type.shape.dim
        if len(dimensions) != 4 or not dimensions[2].dim_value:
            raise ExportError("the recogniser's input is not (batch, 3, size, size)")
        return int(dimensions[2].dim_value)


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, how it compares with its source, and which nodes stayed float32."""

    sha256: str
    agreement: parity.Agreement
    kept: tuple[str, ...]


def read_onnx(path: Path, normalisation: Normalisation) -> SourceRecogniser:
    """An ONNX recogniser with one float32 input. Raises ExportError."""
    model = read_model(path)
    session = parity.open_session(path)

    def answer(faces: FloatArray) -> FloatArray:
        return np.concatenate([parity.run(session, face[np.newaxis])[0] for face in faces])

    return SourceRecogniser(model, answer, normalisation)


def export_recogniser(
    source: SourceRecogniser,
    out: Path,
    faces: NDArray[np.uint8],
    options: Options,
    calibration: NDArray[np.uint8] | None = None,
) -> Exported:
    """Write the source to `out` as `options` say, once it answers like it on (n, size, size, 3) RGB
    `faces`; `calibration` are other faces, which the ranges of INT8 are counted on.

    Raises ExportError, of which ParityError means that the two disagree.
    """
    blob = source.normalisation.apply(faces)
    if options.precision is Precision.INT8 and calibration is None:
        raise ExportError("int8 needs a folder of photos that its ranges are counted on")
    counted = blob if calibration is None else source.normalisation.apply(calibration)
    whole = _with_batch(source.model, options)
    whole = simplified(whole) if options.simplify else whole
    model, kept = _lower(whole, options.precision, blob, counted)
    if options.precision is Precision.FP32 and not options.keep_prelu:
        model = without_prelu(model)
    if options.unit:
        model = _unit_length(model)
    if options.pixels:
        model = fold_pixels(model, source.normalisation)
    given = np.ascontiguousarray(faces[..., ::-1]) if options.pixels else blob
    measured: list[parity.Agreement] = []

    def prove(candidate: Path) -> None:
        exact = options.precision is Precision.FP32 and not options.unit
        lowest = options.minimum_cosine
        measured.append(
            parity.prove_embeddings(
                candidate,
                given,
                source.answer(blob),
                minimum_cosine=MINIMUM_COSINE[options.precision] if lowest is None else lowest,
                maximum_length_change=parity.MAXIMUM_LENGTH_CHANGE if exact else ANY_LENGTH,
            )
        )

    return Exported(publish(model, out, prove), measured[0], kept)


def install_recogniser(source: Path, out: Path) -> None:
    """Write an ONNX recogniser to `out` as packs hold it: for a batch of any size, without PReLU.
    Each face of a batch must be answered as the source answers it alone. Raises ExportError.
    """
    model = read_model(source)
    for value in (model.graph.input[0], *model.graph.output):
        axis = value.type.tensor_type.shape.dim[0]
        axis.Clear()
        axis.dim_param = "batch"
    del model.graph.value_info[:]
    model = without_prelu(model)
    taken = model.graph.input[0].type.tensor_type
    shape = (BATCH_PROOF, *(axis.dim_value for axis in taken.shape.dim[1:]))
    if taken.elem_type != TensorProto.FLOAT or 0 in shape:
        raise ExportError("the recogniser's input is not float32 of a fixed size")
    noise = np.random.default_rng(seed=2).uniform(-1, 1, shape).astype(np.float32)
    alone = parity.run(parity.open_session(source), noise[:1])[0]
    tolerance = BATCH_TOLERANCE * float(np.abs(alone).max())

    def prove(candidate: Path) -> None:
        parity.prove_batch_independence(candidate, noise, tolerance)
        first = parity.run(parity.open_session(candidate), noise[:1])
        parity.prove_same_outputs(first, [alone], tolerance)

    publish(model, out, prove)


def _lower(
    model: onnx.ModelProto, precision: Precision, faces: FloatArray, calibration: FloatArray
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    if precision is Precision.FP32:
        return model, ()
    if precision is Precision.FP16:
        return to_half(model, faces)
    return to_integers(model, precision, calibration), ()


def _with_batch(source: onnx.ModelProto, options: Options) -> onnx.ModelProto:
    """A copy for the batch and the operators asked for."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    if options.opset is not None and options.opset != model.opset_import[0].version:
        model = converted(model, options.opset)
    if options.batch is not None:
        del model.graph.value_info[:]
        for value in (*model.graph.input[:1], *model.graph.output):
            value.type.tensor_type.shape.dim[0].Clear()
            value.type.tensor_type.shape.dim[0].dim_value = options.batch
    return model


def _unit_length(source: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose output has length 1."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    graph, name = model.graph, model.graph.output[0].name
    for node in graph.node:
        for field in (node.input, node.output):
            for index, value in enumerate(field):
                if value == name:
                    field[index] = "unnormalised"
    graph.node.append(helper.make_node("LpNormalization", ["unnormalised"], [name], axis=1, p=2))
    return model
