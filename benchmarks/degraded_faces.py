"""Embeds photos of people, as they are and degraded, once for each kind of degradation.

    python benchmarks/degraded_faces.py ../shared/data/lfw/images CACHE [KIND …] [--pack NAME]

Writes CACHE/KIND.npz, the embeddings and measures of one face per photo, in the order of CACHE's
`photos.txt`; a kind whose file exists is left as it is. `sharp` is every photo as it is, the other
kinds are about 1,000 of them; `fit.npz` has what a domain's direction is fitted to, of the
development half. `domain.py` beside this file compares what lies there.
"""

import argparse
import hashlib
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from app.cli.evaluate import CACHE_FILE
from app.decision.calibrations import pack_orientation
from app.decision.face_selection import FaceSelection, select_face
from app.errors import FaceError, ImageError
from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline
from app.imaging import ImageLimits
from app.index.port import PRECISION
from app.inference.packs import load_pack
from app.lab.evaluation.cache import PhotoCache
from app.lab.evaluation.degrading import (
    MILD_DEGRADATIONS,
    embed_covered,
    embed_degraded,
    photos_to_degrade,
)
from app.lab.evaluation.labels import LabelledPeople, LabelNoise, read_people
from app.lab.evaluation.pipeline_digest import pipeline_digest
from app.lab.evaluation.protocol import Analyser, enrol_photos, in_threads
from app.settings import Device, Settings
from app.types import Face, FloatArray, Image

DEVELOPMENT = (100, 100)  # people with two photos, people with one
HELD_OUT = (200, 250)

Degradation = Callable[[Image, FloatArray, float], Image]
"""A photo, its face's landmarks (5, 2) and the face's width in pixels -> the degraded photo."""


def main() -> None:
    options = _arguments()
    settings = Settings()
    options.cache.mkdir(parents=True, exist_ok=True)
    photos = sorted(str(p.relative_to(options.images)) for p in options.images.glob("*/*.jpg"))
    (options.cache / "photos.txt").write_text("\n".join(photos) + "\n")
    pack = load_pack(options.pack, settings.installed_packs)
    orientation = pack_orientation(pack, PRECISION)
    pipeline = build_pipeline(pack, Device.CPU, ImageLimits(), orientation=orientation)
    if not (options.cache / "fit.npz").exists():
        _embed_for_fit(pipeline, options)
    if options.evaluated and not (options.cache / "sharp.npz").exists():
        digest = pipeline_digest(pack, ImageLimits(), orientation)
        cache = PhotoCache(settings.data_dir / CACHE_FILE, digest, print)
        with closing(cache):
            _take_evaluated(Analyser(pipeline, cache), options, photos)
    for kind in options.kinds or ["sharp", *KINDS]:
        target = options.cache / f"{kind}.npz"
        if not target.exists():
            rows = range(len(photos)) if kind == "sharp" else chosen(photos)
            if options.held_out and kind != "sharp":
                rows = [row for row in rows if not is_development(photos[row].split("/")[0])]
            _embed(pipeline, options, kind, [(i, photos[i]) for i in rows], target)
            print(kind, "done", flush=True)


def _embed_for_fit(pipeline: FacePipeline, options: argparse.Namespace) -> None:
    """As `likeness evaluate --calibration` does, with the people of the development half."""
    everyone = read_people(options.images)
    pairs = zip(everyone.images, everyone.persons, strict=True)
    mine = [(image, person) for image, person in pairs if is_development(person)]
    people = LabelledPeople(options.images, *(tuple(column) for column in zip(*mine, strict=True)))
    names = photos_to_degrade(people, LabelNoise())
    photos = Analyser(pipeline), options.images, names, FaceSelection.CENTRE
    plain, covered = embed_covered(*photos)
    kinds = embed_degraded(*photos) | embed_degraded(*photos, ways=MILD_DEGRADATIONS)
    np.savez(options.cache / "fit.npz", **kinds, plain=plain, covered=covered)


def _take_evaluated(analyser: Analyser, options: argparse.Namespace, photos: list[str]) -> None:
    """The photos as they are, from the cache of `likeness evaluate` where it has them."""
    found = enrol_photos(analyser, options.images, photos).faces
    rows = np.array([row for row, photo in enumerate(photos) if photo in found])
    measures = [_measures(found[photos[row]]) for row in rows]
    np.savez(
        options.cache / "sharp.npz",
        rows=_spread(rows, rows, len(photos)),
        **{
            column: _spread(rows, np.array([one[column] for one in measures]), len(photos))
            for column in COLUMNS[1:]
        },
    )


def is_development(person: str) -> bool:
    """Whether a person belongs to the half that rules may be tuned on: a digest of the name."""
    return hashlib.sha256(person.encode()).digest()[0] < 128


def chosen(photos: list[str]) -> list[int]:
    """The photos that are degraded: two each of some people, one each of others, of both halves."""
    by_person: dict[str, list[int]] = {}
    for row, photo in enumerate(photos):
        by_person.setdefault(photo.split("/")[0], []).append(row)
    order = sorted(by_person, key=lambda name: hashlib.sha256(name.encode()).hexdigest()[2:])
    rows: list[int] = []
    for half, (several, single) in ((True, DEVELOPMENT), (False, HELD_OUT)):
        people = [name for name in order if is_development(name) is half]
        for held, wanted in ((2, several), (1, single)):
            able = [name for name in people if min(len(by_person[name]), 2) == held]
            rows += [row for name in able[:wanted] for row in by_person[name][:held]]
    return sorted(rows)


def _embed(
    pipeline: FacePipeline,
    options: argparse.Namespace,
    kind: str,
    photos: list[tuple[int, str]],
    target: Path,
) -> None:
    sharp = None if kind == "sharp" else np.load(options.cache / "sharp.npz")
    widths = None if sharp is None else sharp["width"]
    landmarks = None if sharp is None else sharp["landmarks"]
    row_of = {name: row for row, name in photos}

    def embed(name: str) -> Face | None:
        pixels, row = cv2.imread(str(options.images / name)), row_of[name]
        if widths is not None and landmarks is not None and np.isfinite(widths[row]):
            pixels = KINDS[kind](pixels, landmarks[row], float(widths[row]))
        return _face(pipeline, pixels)

    columns: dict[str, list[object]] = {name: [] for name in COLUMNS}
    names = list(row_of)
    for name, face in zip(names, in_threads(embed, names, lambda: None), strict=True):
        if face is not None:
            columns["rows"].append(row_of[name])
            for column, value in _measures(face).items():
                columns[column].append(value)
    arrays = {column: np.array(values) for column, values in columns.items()}
    if kind == "sharp":  # one row per photo, so that others find theirs
        arrays = {
            column: _spread(arrays["rows"], values, len(photos))
            for column, values in arrays.items()
        }
    np.savez(target, **arrays)


def _spread(rows: FloatArray, values: FloatArray, count: int) -> FloatArray:
    spread = np.full((count, *values.shape[1:]), np.nan, np.float32)
    spread[rows] = values
    return spread


COLUMNS = ("rows", "embedding", "norm", "sharpness", "brightness", "width", "score", "landmarks")


def _measures(face: Face) -> dict[str, object]:
    quality = face.quality
    return {
        "embedding": face.embedding,
        "norm": quality.embedding_norm,
        "sharpness": quality.sharpness,
        "brightness": quality.brightness,
        "width": quality.face_size_px,
        "score": quality.detector_score,
        "landmarks": face.landmarks,
    }


def _face(pipeline: FacePipeline, pixels: Image) -> Face | None:
    try:
        return select_face(pipeline.analyse_image(pixels, max_faces=16), FaceSelection.CENTRE)
    except (FaceError, ImageError):
        return None


def _blurred(sigma: float) -> Degradation:
    return lambda photo, _points, _width: cv2.GaussianBlur(photo, (0, 0), sigma)


def _times(factor: float) -> Degradation:
    return lambda photo, _points, _width: np.clip(photo * factor, 0, 255).astype(np.uint8)


def _jpeg(quality: int) -> Degradation:
    def encode(photo: Image, _points: FloatArray, _width: float) -> Image:
        _, data = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, quality])
        return cv2.imdecode(data, cv2.IMREAD_COLOR)

    return encode


def _sized(pixels: int) -> Degradation:
    def shrink(photo: Image, _points: FloatArray, width: float) -> Image:
        ratio = pixels / width
        return cv2.resize(photo, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)

    return shrink


def _turned(code: int) -> Degradation:
    return lambda photo, _points, _width: cv2.rotate(photo, code)


def _noisy(sigma: float) -> Degradation:
    def add(photo: Image, _points: FloatArray, _width: float) -> Image:
        generator = np.random.default_rng(zlib.crc32(photo.tobytes()))  # whichever photo is first
        noise = generator.normal(0, sigma, photo.shape)
        return np.clip(photo + noise, 0, 255).astype(np.uint8)

    return add


def _masked(surface: tuple[int, int, int], spots: int = 0) -> Degradation:
    """The lower half of the face under a surface of one colour, with so many spots of others."""

    def cover(photo: Image, points: FloatArray, width: float) -> Image:
        mask = np.zeros(photo.shape[:2], np.uint8)
        cv2.fillPoly(mask, [_lower_half(points)], 255, cv2.LINE_AA)
        cloth = np.full_like(photo, surface)
        for x, y, *colour in np.random.default_rng(0).random((spots, 5)):
            place = int(x * photo.shape[1]), int(y * photo.shape[0])
            cv2.circle(cloth, place, round(width / 18), [255 * one for one in colour], -1)
        share = mask[:, :, np.newaxis] / 255
        return np.asarray(photo * (1 - share) + cloth * share, np.uint8)

    return cover


def _lower_half(points: FloatArray) -> NDArray[np.int32]:
    """From the bridge of the nose to the chin (6, 2)."""
    right, left, nose, right_mouth, left_mouth = points
    down = (right_mouth + left_mouth) / 2 - (right + left) / 2
    bridge = (nose + (right + left) / 2) / 2 + 0.15 * down
    side = (left - right) * 0.55
    return np.array([
        bridge, nose + 1.15 * side, left_mouth + 0.45 * side,
        (left_mouth + right_mouth) / 2 + 0.75 * down,
        right_mouth - 0.45 * side, nose - 1.15 * side,
    ]).astype(np.int32)  # fmt: skip


def _grey(photo: Image, _points: FloatArray, _width: float) -> Image:
    return cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)


# The first three are those that a domain's direction is the mean of.
KINDS: dict[str, Degradation] = {
    "blur-6": _blurred(6), "dark-0.05": _times(0.05), "turned-180": _turned(cv2.ROTATE_180),
    "blur-4": _blurred(4), "dark-0.1": _times(0.1), "bright-3": _times(3), "size-16": _sized(16),
    "blur-3": _blurred(3), "jpeg-10": _jpeg(10), "masked": _masked((214, 190, 160)), "grey": _grey,
    "blur-5": _blurred(5), "turned-90": _turned(cv2.ROTATE_90_CLOCKWISE), "size-24": _sized(24),
    "dark-0.2": _times(0.2), "blur-2": _blurred(2), "size-32": _sized(32), "noise-40": _noisy(40),
    "jpeg-20": _jpeg(20), "bright-2": _times(2), "size-64": _sized(64), "blur-1": _blurred(1),
    "jpeg-30": _jpeg(30), "size-12": _sized(12), "masked-white": _masked((235, 235, 235)),
    "masked-black": _masked((25, 25, 25)), "masked-spots": _masked((120, 60, 160), 1_500),
}  # fmt: skip


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--pack", default="default")
    parser.add_argument(
        "--evaluated", action="store_true", help="take `sharp` from the cache of likeness evaluate"
    )
    parser.add_argument("--held-out", action="store_true", help="no others of the degraded photos")
    return parser.parse_args()


if __name__ == "__main__":
    main()
