"""A recogniser's variants side by side: file size, cosine to the source, accuracy, milliseconds.

    python benchmarks/variants.py SOURCE.onnx --mean 127.5 --std 128 --faces PHOTOS \
        --calibration OTHER_PHOTOS --pairs pairs.csv

Each variant is made by the export and proven on the faces of PHOTOS; int8 counts its ranges on
OTHER_PHOTOS. Accuracy: pairs with the default pack's detector. Milliseconds: one aligned face from
its pixels to its unit vector on one thread; the variants take turns, medians of ROUNDS rounds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.faces.embed import Recogniser
from app.inference.session import OnnxModel
from app.lab.export.accuracy import measure, pack_of
from app.lab.export.faces import Normalisation, align_folder
from app.lab.export.precision import Precision
from app.lab.export.recogniser import Exported, Options, export_recogniser, read_onnx
from app.settings import Device

ROUNDS = 9
FACES_A_ROUND = 20
VARIANTS = {
    "fp32": Options(),
    "uint8 input": Options(pixels=True),
    "fp16": Options(precision=Precision.FP16),
    "int8": Options(precision=Precision.INT8),
    "int8, uint8 input": Options(precision=Precision.INT8, pixels=True),
    "int8-dynamic": Options(precision=Precision.INT8_DYNAMIC),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One that was written, and what its proof found."""

    name: str
    path: Path
    exported: Exported


def main() -> None:
    options = _arguments()
    given = Normalisation(options.mean, options.std, rgb=not options.bgr)
    source = read_onnx(options.source, given)
    faces = align_folder(options.faces, source.size)
    calibration = align_folder(options.calibration, source.size)
    with tempfile.TemporaryDirectory() as folder:
        variants = []
        for number, (name, how) in enumerate(VARIANTS.items()):
            path = Path(folder) / f"{number}.onnx"
            exported = export_recogniser(source, path, faces, how, calibration)
            variants.append(Variant(name, path, exported))
        spent = _interleaved(variants, given, np.ascontiguousarray(faces[..., ::-1]))
        print(f"{'variant':20}{'MB':>7}{'cosine':>13}{'ms':>8}{'of fp32':>9}  accuracy (EER)")
        for variant in variants:
            milliseconds = statistics.median(spent[variant.name])
            ratio = statistics.median(
                own / reference
                for own, reference in zip(spent[variant.name], spent["fp32"], strict=True)
            )
            print(
                f"{variant.name:20}{variant.path.stat().st_size / 1e6:7.2f}"
                f"{variant.exported.agreement.minimum_cosine:13.9f}{milliseconds:8.2f}{ratio:9.2f}"
                f"  {_accuracy(variant, given, options.pairs)}",
                flush=True,
            )


def _interleaved(
    variants: list[Variant], given: Normalisation, crops: NDArray[np.uint8]
) -> dict[str, list[float]]:
    """Milliseconds per face, a number per round, by variant."""
    networks = {
        variant.name: Recogniser(
            OnnxModel(variant.path, Device.CPU), pack_of(variant.path, given).recogniser
        )
        for variant in variants
    }
    spent: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(ROUNDS):
        for name, network in networks.items():
            started = time.perf_counter()
            for crop in _turn(crops):
                network.embed(crop)
            spent[name].append(1000 * (time.perf_counter() - started) / FACES_A_ROUND)
    return spent


def _turn(crops: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    for index in range(FACES_A_ROUND):
        yield crops[index % len(crops)][np.newaxis]


def _accuracy(variant: Variant, given: Normalisation, pairs: Path | None) -> str:
    if pairs is None:
        return "not measured"
    found = measure(variant.path, given, pairs)
    return f"{found.accuracy:.2%} ({found.equal_error_rate:.2%})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("--mean", type=float, default=127.5)
    parser.add_argument("--std", type=float, default=127.5)
    parser.add_argument("--bgr", action="store_true")
    parser.add_argument("--faces", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--pairs", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
