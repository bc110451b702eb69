"""Does decoding JPEGs at a fraction of their size cost accuracy, and what does it save?

    python benchmarks/reduced_decode.py --pack default --data ../shared/data

LFW's photos enlarged eight times (2,000 x 2,000) and WIDER's four times (2,560 on the longer side),
written as JPEG and analysed twice: as the service does it, and from the whole photo.
"""

import argparse
import io
import statistics
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from PIL import Image as PillowImage
from rich.console import Console
from rich.table import Table

from app.decision.face_selection import FaceSelection, select_face
from app.errors import FaceError
from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline
from app.imaging import ImageLimits
from app.inference.machine import usable_cores
from app.inference.packs import load_pack
from app.lab.evaluation.labels import read_faces, read_pairs
from app.lab.evaluation.metrics import match_faces, recall_by_size
from app.settings import Device
from app.types import AnalysedImage, FloatArray

Both = tuple[AnalysedImage, AnalysedImage]
LFW_FACTOR, WIDER_FACTOR = 8, 4
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pack", default="default")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pairs", type=int, default=0, help="every n-th pair only")
    options = parser.parse_args()
    pipeline = build_pipeline(load_pack(options.pack), Device.CPU, ImageLimits())
    cv2.setNumThreads(1)
    lfw(pipeline, options.data / "lfw", options.pairs or 1)
    wider(pipeline, options.data / "wider")


def analyse_both(pipeline: FacePipeline, files: Mapping[str, Path], factor: int) -> dict[str, Both]:
    """Each enlarged photo as the service sees it and from all its pixels; prints what it took."""
    spent: tuple[list[float], list[float]] = ([], [])

    def both(file: Path) -> Both:
        photo = enlarged(file, factor)
        start = time.perf_counter()
        served = pipeline.analyse(photo, max_faces=10_000)
        middle = time.perf_counter()
        image = np.asarray(PillowImage.open(io.BytesIO(photo)).convert("RGB"))
        whole = pipeline.analyse_image(cv2.cvtColor(image, cv2.COLOR_RGB2BGR), max_faces=10_000)
        spent[0].append(middle - start)
        spent[1].append(time.perf_counter() - middle)
        return served, whole

    with ThreadPoolExecutor(usable_cores()) as threads:
        found = dict(zip(files, threads.map(both, files.values()), strict=True))
    served, whole = (statistics.median(one) * 1000 for one in spent)
    console.print(f"{len(files)} photos: {served:.0f} ms each as served, {whole:.0f} ms in full")
    return found


def enlarged(file: Path, factor: int) -> bytes:
    """The photo as a larger JPEG."""
    picture = PillowImage.open(file).convert("RGB")
    size = (picture.width * factor, picture.height * factor)
    buffer = io.BytesIO()
    picture.resize(size, PillowImage.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def lfw(pipeline: FacePipeline, folder: Path, step: int) -> None:
    pairs = read_pairs(folder / "pairs.csv")
    first, second, same = pairs.images_a[::step], pairs.images_b[::step], pairs.same[::step]
    names = sorted({*first, *second})
    found = analyse_both(pipeline, {name: folder / "images" / name for name in names}, LFW_FACTOR)
    rows = Table("LFW x 8", "accuracy at the best threshold", "no face", title=f"{len(same)} pairs")
    for way, label in enumerate(("as served", "in full")):
        vectors = {name: centre(both[way]) for name, both in found.items()}
        scores = np.array(
            [similarity(vectors[a], vectors[b]) for a, b in zip(first, second, strict=True)]
        )
        best = max(float(((scores >= t) == same).mean()) for t in np.unique(scores))
        failed = sum(vector is None for vector in vectors.values())
        rows.add_row(label, f"{best:.2%}", str(failed))
    console.print(rows)
    shifts, cosines = [], []
    for served, whole in found.values():
        if len(served.faces) == len(whole.faces):
            for a, b in zip(served.faces, whole.faces, strict=True):
                shifts.append((a.box - b.box) / np.ptp(b.box[::2]))
                cosines.append(float(a.embedding @ b.embedding))
    offsets = np.array(shifts)
    console.print(
        f"boxes, in widths of the face: mean shift {np.abs(offsets.mean(axis=0)).max():.4f}, "
        f"median of the largest {np.median(np.abs(offsets).max(axis=1)):.4f}; "
        f"cosine of the embeddings: median {np.median(cosines):.4f}, "
        f"1 % below {np.quantile(cosines, 0.01):.3f}"
    )


def centre(image: AnalysedImage) -> FloatArray | None:
    try:
        return select_face(image, FaceSelection.CENTRE).embedding
    except FaceError:
        return None


def similarity(a: FloatArray | None, b: FloatArray | None) -> float:
    return -1.0 if a is None or b is None else float(a @ b)


def wider(pipeline: FacePipeline, folder: Path) -> None:
    labelled = read_faces(folder / "faces.csv")
    files = {name: folder / "images" / name for name in labelled}
    found = analyse_both(pipeline, files, WIDER_FACTOR)
    rows = Table("WIDER x 4", ">= 32 px", ">= 16 px", "unmatched", title="recall")
    for way, label in enumerate(("as served", "in full")):
        matches = []
        for name, truth in labelled.items():
            faces = found[name][way].faces
            boxes = np.array([face.box for face in faces]).reshape(-1, 4) / WIDER_FACTOR
            matches.append(match_faces(boxes, np.array([face.score for face in faces]), truth))
        sizes = recall_by_size(matches, (32, 16))
        rates = (f"{size.recall:.1%} of {size.faces}" for size in sizes)
        rows.add_row(label, *rates, str(sum(one.unmatched for one in matches)))
    console.print(rows)


if __name__ == "__main__":
    main()
