"""Proves that an exported network gives the same answers as its source; a written file gets its
name only after it was checked and proven."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from app.disk import sha256


class ExportError(Exception):
    """The source cannot be exported, or what is needed to prove the export is missing."""


Proof = Callable[[Path], None]


def publish(model: onnx.ModelProto, out: Path, prove: Proof) -> str:
    """Write `model` to `out` if it is valid and `prove` accepts the written file.

    Check, proof and rename happen on a temporary file in the same folder, so that a failure,
    a full disk or a kill never leaves an unproven file under `out`; one that stood there before
    stays as it was. Returns the SHA-256 of the file. Raises whatever the check or `prove` raise.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.stem}-", suffix=".onnx")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(serialise(model))
            file.flush()
            os.fsync(file.fileno())
        check(temporary)
        prove(temporary)
        temporary.chmod(0o644)  # mkstemp makes private files; a model is not a secret
        digest = sha256(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def serialise(model: onnx.ModelProto) -> bytes:
    """The bytes of a model, the same for the same model: a digest can name them."""
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def check(path: Path) -> None:
    """Raise ExportError unless the file is valid ONNX whose shapes all follow from its input."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error


FloatArray = NDArray[np.float32]

# float32 sums in another order leave about 1e-7; a wrong pad or slope leaves more than 1e-3.
MINIMUM_COSINE = 0.99999
# Direction decides who somebody is, length is the quality signal: both must survive.
MAXIMUM_LENGTH_CHANGE = 1e-4


class ParityError(ExportError):
    """The exported network does not answer like its source; it must not be used."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How closely two recognisers answer the same faces."""

    faces: int
    minimum_cosine: float
    maximum_length_change: float  # relative


def cosines(a: FloatArray, b: FloatArray) -> NDArray[np.float64]:
    """Row by row cosine of two (n, d) arrays, in float64 so that 1 - 1e-7 is not rounded away."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return np.asarray(np.einsum("nd,nd->n", left, right) / lengths)


def prove_embeddings(
    path: Path,
    faces: NDArray[Any],
    expected: FloatArray,
    *,
    minimum_cosine: float = MINIMUM_COSINE,
    maximum_length_change: float = MAXIMUM_LENGTH_CHANGE,
) -> Agreement:
    """Compare an ONNX recogniser with the (n, d) `expected` on (n, …) `faces` as it takes them.

    Each face is asked alone and all in one batch; where the network's batch is fixed, in groups of
    that many. Raises ParityError below `minimum_cosine` or beyond `maximum_length_change`.
    """
    session = open_session(path)
    batch = session.get_inputs()[0].shape[0]
    groups = [batch] if isinstance(batch, int) else [1, len(faces)]
    return min(
        (
            _agreement(_in_groups(session, faces, group), expected, minimum_cosine,
                       maximum_length_change)
            for group in groups
        ),
        key=lambda agreement: agreement.minimum_cosine,
    )  # fmt: skip


def _in_groups(session: ort.InferenceSession, faces: NDArray[Any], group: int) -> FloatArray:
    """The embeddings of all faces, `group` at a time; the last group is filled up."""
    rows = np.minimum(np.arange(-(-len(faces) // group) * group), len(faces) - 1)
    answers = [run(session, faces[rows[i : i + group]])[0] for i in range(0, len(rows), group)]
    return np.concatenate(answers)[: len(faces)]


def _agreement(
    actual: FloatArray,
    expected: FloatArray,
    minimum_cosine: float = MINIMUM_COSINE,
    maximum_length_change: float = MAXIMUM_LENGTH_CHANGE,
) -> Agreement:
    if actual.shape != expected.shape:
        raise ParityError(f"answers have the shape {actual.shape}, expected {expected.shape}")
    lengths = np.linalg.norm(expected, axis=1)
    change = np.abs(np.linalg.norm(actual, axis=1) / lengths - 1)
    found = Agreement(len(actual), float(cosines(actual, expected).min()), float(change.max()))
    # Written so that a NaN fails.
    if not found.minimum_cosine >= minimum_cosine:
        raise ParityError(
            f"the export answers with a cosine of {found.minimum_cosine:.7f} to its source on one "
            f"of {found.faces} faces; {minimum_cosine} is required"
        )
    if not found.maximum_length_change <= maximum_length_change:
        raise ParityError(
            f"the export changes the length of an embedding by {found.maximum_length_change:.1e}; "
            f"{maximum_length_change} is allowed"
        )
    return found


def prove_same_outputs(
    actual: Sequence[FloatArray], expected: Sequence[FloatArray], tolerance: float
) -> float:
    """The largest absolute difference between outputs, which may be shaped differently.

    Raises ParityError when one is above `tolerance` or the outputs differ in number or size.
    """
    if [a.size for a in actual] != [e.size for e in expected]:
        raise ParityError("the export has other outputs than its source")
    differences = [
        float(np.abs(a.ravel() - e.ravel()).max()) for a, e in zip(actual, expected, strict=True)
    ]
    worst = float(np.max(differences))  # a NaN, if one of them is; Python's max may pass over it
    if not worst <= tolerance:
        raise ParityError(f"outputs differ by {worst:.1e}; {tolerance:.1e} is allowed")
    return worst


def prove_batch_independence(path: Path, images: FloatArray, tolerance: float) -> float:
    """Check that every image of a batch is answered as if it were alone.

    `tolerance` is an absolute difference, 0 asks for the same bits. Returns the largest one met;
    raises ParityError above it.
    """
    session = open_session(path)
    batch = run(session, images)
    worst = 0.0
    for index, image in enumerate(images):
        alone = run(session, image[np.newaxis])
        mine = [output[index : index + 1] for output in batch]
        worst = max(worst, prove_same_outputs(mine, alone, tolerance))
    return worst


def open_session(path: Path) -> ort.InferenceSession:
    """An ONNX Runtime session on one CPU thread: sums come in one order, results repeat. Raises
    ExportError if ONNX Runtime cannot open the network."""
    return _session(str(path))


def open_session_of(
    model: onnx.ModelProto, options: ort.SessionOptions | None = None
) -> ort.InferenceSession:
    """The same for a network that no file holds yet; with other options, if they are given."""
    return _session(model.SerializeToString(), options)


def _session(source: str | bytes, given: ort.SessionOptions | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions() if given is None else given
    options.intra_op_num_threads = 1
    options.log_severity_level = (
        3  # sources declare shapes they do not keep; that is why we are here
    )
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises its own types
        raise ExportError(f"ONNX Runtime cannot open the network: {error}") from error


def run(session: ort.InferenceSession, images: NDArray[Any]) -> list[FloatArray]:
    """All outputs of a network with one input. Raises ExportError if it does not run on that."""
    try:
        outputs = session.run(None, {session.get_inputs()[0].name: images})
    except Exception as error:  # ONNX Runtime raises its own types
        shape = "x".join(map(str, images.shape))
        raise ExportError(f"the network does not run on an input of {shape}: {error}") from error
    return [np.asarray(output, np.float32) for output in outputs]
