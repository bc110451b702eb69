"""A large JPEG is decoded at a fraction of its size, and small faces of it once more."""

from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image as PillowImage

from app.faces.images import align_faces
from app.faces.pipeline import FacePipeline, run_to_completion
from app.imaging import ImageLimits, PhotoDecoder, decode_at_least
from app.telemetry.metrics import StageClock
from app.types import AnalysedImage, DecodedImage, Image


def record_decoding(monkeypatch: pytest.MonkeyPatch) -> list[DecodedImage]:
    """All photos that are decoded from now on."""
    decoded: list[DecodedImage] = []
    decode = PhotoDecoder.decode

    def record(decoder: PhotoDecoder, data: bytes, enough: int | None = None) -> DecodedImage:
        decoded.append(decode(decoder, data, enough))
        return decoded[-1]

    monkeypatch.setattr(PhotoDecoder, "decode", record)
    return decoded


class TestReducedCopies:
    """Photos far larger than the detector's input are decoded at a fraction of their size."""

    def same(self, image: AnalysedImage, whole: AnalysedImage) -> None:
        assert (image.width, image.height) == (whole.width, whole.height)
        assert len(image.faces) == len(whole.faces) > 0
        for face, other in zip(image.faces, whole.faces, strict=True):
            width = other.box[2] - other.box[0]
            # The detector sees other pixels: the copy is averaged, the photo is sampled.
            assert np.abs(face.box - other.box).max() < 0.05 * width
            assert np.abs(face.landmarks - other.landmarks).max() < 0.04 * width
            assert face.embedding is not None
            assert face.embedding @ other.embedding > 0.95

    def test_a_large_face_comes_from_the_copy(
        self, pipeline: FacePipeline, enlarged: Image, encode: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        decoded = record_decoding(monkeypatch)
        found = pipeline.analyse(encode(enlarged, quality=95), max_faces=3)
        assert [photo.reduction for photo in decoded] == [4]
        self.same(found, pipeline.analyse_image(enlarged, max_faces=3))

    def test_coordinates_are_those_of_the_photo(
        self, pipeline: FacePipeline, enlarged: Image, encode: Any
    ) -> None:
        """Against the photo averaged by hand, no copy of the decoder's: exact to two pixels."""
        (face,) = pipeline.analyse(encode(enlarged, quality=95), max_faces=3).faces
        small = cv2.resize(enlarged, (640, 640), interpolation=cv2.INTER_AREA)
        (other,) = pipeline.analyse_image(np.asarray(small, np.uint8), max_faces=3).faces
        assert np.abs(face.box - other.box * 4).max() < 2
        assert np.abs(face.landmarks - other.landmarks * 4).max() < 2

    def test_small_faces_come_from_the_photo(
        self,
        pipeline: FacePipeline,
        group_image: Image,
        encode: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        decoded = record_decoding(monkeypatch)
        twice = np.asarray(cv2.resize(group_image, None, fx=2, fy=2))
        found = pipeline.analyse(encode(twice, quality=95), max_faces=10)
        assert decoded[0].reduction == 4
        assert [photo.pixels.shape for photo in decoded[1:]] == [twice.shape]
        self.same(found, pipeline.analyse_image(twice, max_faces=10))

    def test_crops_of_the_copy_show_what_crops_of_the_photo_show(
        self, pipeline: FacePipeline, enlarged: Image, encode: Any
    ) -> None:
        """Not a quarter of a crop's pixel off: each crop is nearest to itself unmoved."""
        decoded = decode_at_least(encode(enlarged, quality=95), ImageLimits(), 640)
        assert decoded.reduction == 4
        (face,) = pipeline.analyse_image(enlarged, max_faces=3).faces
        points = face.landmarks[np.newaxis]
        points, crops = run_to_completion(pipeline._crops(decoded, None, points, StageClock()))
        crop = crops[0].astype(float)
        smooth = np.asarray(cv2.blur(enlarged, (4, 4)), np.uint8)

        def off(pixels: float) -> float:
            (other,) = align_faces(smooth, points + np.float32(pixels)).astype(float)
            return float(np.abs(crop - other).mean())

        assert min((-4.0, -2.0, 0.0, 2.0, 4.0), key=off) == 0

    def test_a_turned_photo_with_sides_that_do_not_divide(
        self, pipeline: FacePipeline, enlarged: Image, encode: Any
    ) -> None:
        upright = np.ascontiguousarray(enlarged[:2_003, :1_777])  # read whole
        tags = PillowImage.Exif()
        tags[0x0112] = 6
        data = encode(np.rot90(upright), quality=95, exif=tags.tobytes())
        self.same(pipeline.analyse(data, max_faces=3), pipeline.analyse_image(upright, max_faces=3))

    def test_a_turned_photo_with_sides_that_divide(
        self, pipeline: FacePipeline, enlarged: Image, encode: Any
    ) -> None:
        tags = PillowImage.Exif()
        tags[0x0112] = 3
        data = encode(enlarged[::-1, ::-1], quality=95, exif=tags.tobytes())
        self.same(
            pipeline.analyse(data, max_faces=3), pipeline.analyse_image(enlarged, max_faces=3)
        )

    def test_boxes_end_at_the_photo_s_edge(
        self, pipeline: FacePipeline, enlarged: Image, encode: Any
    ) -> None:
        cut = np.ascontiguousarray(enlarged[:, :1_301])  # through the face
        found = pipeline.analyse(encode(cut, quality=95), max_faces=3)
        for face in found.faces:
            assert (face.box <= [found.width, found.height] * 2).all()
            assert (face.box >= 0).all()
