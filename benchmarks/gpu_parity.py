"""Whether a device answers as the CPU does: cosines of embeddings, decisions of pairs of LFW."""

import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
from gpu_tables import show_table
from numpy.typing import NDArray

import app  # noqa: F401 (switches off ONNX Runtime's reports, so it comes first)

# isort: split
from app.faces.detect import Detector
from app.faces.embed import Recogniser
from app.faces.images import align_faces
from app.inference.cuda import CudaOptions
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel
from app.lab.evaluation.labels import read_pairs
from app.lab.export.faces import Normalisation
from app.lab.export.precision import Precision
from app.lab.export.recogniser import Options, export_recogniser, read_onnx
from app.settings import Device

DATA = Path(os.environ.get("LIKENESS_EVAL_DATA", "../shared/data"))
PROOF_FACES = 60

Faces = NDArray[np.uint8]


def parity(pack: ModelPack, device: Device, count: int) -> None:
    """Of `count` pairs."""
    with tempfile.TemporaryDirectory() as folder:
        _parity(pack, device, count, folder)


def _parity(pack: ModelPack, device: Device, count: int, folder: str) -> None:
    faces, first, second = _pairs_of_faces(pack, count)
    if not len(first):
        print(f"Parity: skipped, no evaluation data at {DATA}\n")
        return
    half = _half(pack, faces, Path(folder))
    reference, _ = Recogniser(OnnxModel(pack.recogniser_path, Device.CPU), pack.recogniser).embed(
        faces
    )
    decided = _decisions(reference, first, second, pack)
    table = []
    variants = [
        ("fp32", pack.recogniser_path, CudaOptions(tf32=False)),
        ("fp16", half, CudaOptions()),
    ]
    if device is Device.CUDA:
        variants.insert(0, ("TF32, the default", pack.recogniser_path, CudaOptions()))
    for name, path, options in variants:
        network = OnnxModel(path, device, options)
        vectors, _ = Recogniser(network, pack.recogniser).embed(faces)
        cosines = np.einsum("nd,nd->n", vectors, reference)
        same = int((_decisions(vectors, first, second, pack) == decided).sum())
        share = f"{same} of {len(decided)} ({same / len(decided):.2%})"
        table.append([name, f"{cosines.min():.7f}", f"{np.median(cosines):.7f}", share])
    columns = ("precision", "lowest cosine to CPU fp32", "median", "same decisions")
    show_table(f"Parity on {len(faces)} faces of LFW", columns, table)


def _decisions(
    vectors: NDArray[np.float32],
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    pack: ModelPack,
) -> NDArray[np.bool_]:
    similarities = np.einsum("nd,nd->n", vectors[first], vectors[second])
    return np.asarray(similarities >= pack.decision.threshold)


def _half(pack: ModelPack, faces: Faces, folder: Path) -> Path:
    spec, path = pack.recogniser, folder / "half.onnx"
    given = Normalisation(spec.mean, spec.std, rgb=spec.colour == "rgb")
    proof = np.ascontiguousarray(faces[:PROOF_FACES, ..., ::-1])
    options = Options(precision=Precision.FP16)
    export_recogniser(read_onnx(pack.recogniser_path, given), path, proof, options)
    return path


def _pairs_of_faces(
    pack: ModelPack, count: int
) -> tuple[Faces, NDArray[np.intp], NDArray[np.intp]]:
    """Aligned faces (BGR) of the photos of `count` pairs, and the places of each pair's two."""
    if not (DATA / "lfw" / "pairs.csv").is_file():
        return np.empty((0, 112, 112, 3), np.uint8), np.empty(0, np.intp), np.empty(0, np.intp)
    pairs = read_pairs(DATA / "lfw" / "pairs.csv")
    detector = Detector(OnnxModel(pack.detector_path, Device.CPU), pack.detector)
    places: dict[str, int] = {}
    faces: list[Faces] = []
    chosen = []
    for index in np.linspace(0, len(pairs) - 1, min(count, len(pairs)), dtype=int):
        names = (pairs.images_a[index], pairs.images_b[index])
        for name in names:
            if name not in places:
                face = _face(DATA / "lfw" / "images" / name, detector, pack)
                places[name] = len(faces) if face is not None else -1
                faces += [] if face is None else [face]
        chosen.append([places[name] for name in names])
    both = np.array([pair for pair in chosen if min(pair) >= 0], np.intp)
    return np.stack(faces), both[:, 0], both[:, 1]


def _face(path: Path, detector: Detector, pack: ModelPack) -> Faces | None:
    image = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR), np.uint8)
    found = detector.detect(image)
    if not len(found) or found.landmarks is None:
        return None
    largest = int(np.argmax(np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1)))
    one = found.landmarks[largest : largest + 1]
    return np.asarray(align_faces(image, one, pack.recogniser.input_size)[0], np.uint8)
