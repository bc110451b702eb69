"""Detection with real networks on real photos: all architectures, sizes, shapes and mistakes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from app.errors import PackError
from app.faces.decoders import decode_scrfd
from app.faces.detect import Detector, Framing, letterbox, suppress
from app.imaging import ImageLimits, decode_image
from app.inference.pack_spec import ModelPack
from app.inference.session import OnnxModel
from app.settings import Device
from app.types import Detections, FloatArray, Image

Overlap = Callable[[FloatArray, FloatArray], Any]
LoadDetector = Callable[..., Detector]

# Where the six people of the group photo have their noses, read off the picture.
GROUP_NOSES = [(120, 340), (306, 225), (510, 360), (773, 428), (919, 150), (1169, 348)]


def landmarks_of(found: Detections) -> FloatArray:
    assert found.landmarks is not None
    return found.landmarks


def crop_around(image: Image, box: FloatArray, margin: float) -> Image:
    """The image cut to a box grown by a share of its sides (shrunk where negative)."""
    side = np.tile(box[2:] - box[:2], 2) * [-margin, -margin, margin, margin]
    x1, y1, x2, y2 = (int(v) for v in np.maximum(box + side, 0))
    return np.ascontiguousarray(image[y1:y2, x1:x2])


class TestOnPhotos:
    def test_one_face_on_each_portrait(
        self, any_detector: Detector, portraits: dict[str, Image]
    ) -> None:
        for name, image in portraits.items():
            found = any_detector.detect(image)
            assert len(found) == 1, name
            assert found.scores[0] > 0.7
            right_eye, left_eye, nose, right_mouth, left_mouth = landmarks_of(found)[0]
            assert right_eye[0] < left_eye[0]
            assert right_mouth[0] < left_mouth[0]
            assert max(right_eye[1], left_eye[1]) < nose[1] < min(right_mouth[1], left_mouth[1])
            x1, y1, x2, y2 = found.boxes[0]
            assert x1 < right_eye[0]
            assert left_eye[0] < x2
            assert y1 < right_eye[1]
            assert left_mouth[1] < y2

    def test_six_faces_on_the_group_photo(self, any_detector: Detector, group_image: Image) -> None:
        found = any_detector.detect(group_image)
        assert len(found) == 6
        for nose in GROUP_NOSES:
            off = np.linalg.norm(landmarks_of(found)[:, 2] - nose, axis=1)
            assert off.min() < 15

    def test_best_score_first(self, any_detector: Detector, group_image: Image) -> None:
        scores = any_detector.detect(group_image).scores
        assert (np.diff(scores) <= 0).all()
        assert ((scores > 0) & (scores <= 1)).all()

    def test_the_detectors_agree(
        self,
        any_detector: Detector,
        group_image: Image,
        faces_of_group: Detections,
        portraits: dict[str, Image],
        faces_of_portraits: dict[str, Detections],
        overlap: Overlap,
    ) -> None:
        pairs = [(faces_of_group, group_image)]
        pairs += [(faces_of_portraits[name], image) for name, image in portraits.items()]
        for mine, image in pairs:
            others = any_detector.detect(image)
            shared = overlap(mine.boxes, others.boxes)
            assert shared.max(axis=1).min() > 0.7
            nearest = landmarks_of(others)[shared.argmax(axis=1)]
            off = np.linalg.norm(landmarks_of(mine) - nearest, axis=2).max(axis=1)
            assert (off < 0.12 * (mine.boxes[:, 3] - mine.boxes[:, 1])).all()

    def test_the_crowd_behind(self, any_detector: Detector, photos: Path) -> None:
        """Two people behind the speaker are cut by the frame; they may be found, he must be."""
        image = decode_image((photos / "obama2.jpg").read_bytes(), ImageLimits())
        found = any_detector.detect(image)
        largest = np.prod(found.boxes[:, 2:] - found.boxes[:, :2], axis=1).argmax()
        assert np.linalg.norm(landmarks_of(found)[largest, 2] - [340, 460]) < 80

    def test_boxes_lie_inside_the_image(
        self, any_detector: Detector, group_image: Image, faces_of_group: Detections
    ) -> None:
        for box in faces_of_group.boxes:
            half = group_image[:, : int((box[0] + box[2]) / 2 + 15)]  # cuts through the face
            height, width = half.shape[:2]
            found = any_detector.detect(np.ascontiguousarray(half)).boxes
            assert (found >= 0).all()
            assert (found <= [width, height, width, height]).all()
            assert (found[:, 2:] > found[:, :2]).all()

    @pytest.mark.parametrize("size", [(1000, 693), (333, 777), (2000, 300)])
    def test_coordinates_are_right_for_sides_that_do_not_divide(
        self, any_detector: Detector, astronaut_image: Image, size: tuple[int, int]
    ) -> None:
        """The face is put at the far corner, where a wrong scale shows most."""
        width, height = size
        face = astronaut_image[40:220, 130:320]
        canvas = np.full((height, width, 3), 110, np.uint8)
        canvas[-180:, -190:] = face
        alone = landmarks_of(any_detector.detect(astronaut_image))[0] - [130, 40]
        found = landmarks_of(any_detector.detect(canvas))[0] - [width - 190, height - 180]
        assert np.abs(found - alone).max() < 12

    def test_faces_of_twenty_pixels(
        self,
        any_detector: Detector,
        portraits: dict[str, Image],
        faces_of_portraits: dict[str, Detections],
    ) -> None:
        for name, image in portraits.items():
            box = faces_of_portraits[name].boxes[0]
            ratio = 20 / float(box[2] - box[0])
            small = cv2.resize(image, None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
            canvas = np.full((480, 640, 3), 127, np.uint8)
            rows, columns = min(380, small.shape[0]), min(440, small.shape[1])
            canvas[100 : 100 + rows, 200 : 200 + columns] = small[:rows, :columns]
            found = any_detector.detect(canvas)
            assert len(found) == 1, name
            centre = (found.boxes[0, :2] + found.boxes[0, 2:]) / 2
            expected = (box[:2] + box[2:]) / 2 * ratio + [200, 100]
            assert np.linalg.norm(centre - expected) < 4

    @pytest.mark.parametrize("margin", [-0.1, 0.0, 0.1])
    def test_faces_that_fill_the_frame(
        self,
        any_detector: Detector,
        portraits: dict[str, Image],
        faces_of_portraits: dict[str, Detections],
        margin: float,
    ) -> None:
        for name, image in portraits.items():
            box = faces_of_portraits[name].boxes[0]
            tight = crop_around(image, box, margin)
            found = any_detector.detect(tight)
            assert len(found) == 1, name
            nose = landmarks_of(faces_of_portraits[name])[0, 2] - np.maximum(
                box[:2] - margin * (box[2:] - box[:2]), 0
            )
            assert np.linalg.norm(landmarks_of(found)[0, 2] - nose) < 0.15 * tight.shape[0]


class TestSecondPass:
    """A face that fills the frame is found once it has surroundings."""

    def found_in_one_pass(self, detector: Detector, image: Image) -> int:
        return len(detector.look(image))

    def test_centerface_needs_it_inside_a_face(
        self, detector: Detector, portraits: dict[str, Image]
    ) -> None:
        image = portraits["obama3"]
        tight = crop_around(image, detector.detect(image).boxes[0], -0.25)
        assert self.found_in_one_pass(detector, tight) == 0
        assert len(detector.detect(tight)) == 1

    def test_scrfd_needs_it_for_every_tight_crop_as_insightface_lays_it_out(
        self, scrfd_file: Path, load_detector: LoadDetector, portraits: dict[str, Image]
    ) -> None:
        scrfd = load_detector(scrfd_file, "scrfd", layout="insightface")
        for image in portraits.values():
            tight = crop_around(image, scrfd.detect(image).boxes[0], 0.0)
            assert self.found_in_one_pass(scrfd, tight) == 0
            (box,) = scrfd.detect(tight).boxes
            assert np.prod(box[2:] - box[:2]) > 0.6 * tight.shape[0] * tight.shape[1]


class TestNobody:
    @pytest.mark.parametrize(
        "image",
        [
            np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8),
            np.zeros((480, 640, 3), np.uint8),
            np.full((300, 300, 3), 255, np.uint8),
            np.full((1, 1, 3), 127, np.uint8),
            np.full((2000, 1, 3), 127, np.uint8),
            np.random.default_rng(1).integers(0, 256, (1, 2000, 3), dtype=np.uint8),
            np.zeros((7, 16000, 3), np.uint8),
        ],
        ids=["noise", "black", "white", "pixel", "pole", "line", "ribbon"],
    )
    def test_is_found_where_nobody_is(self, any_detector: Detector, image: Image) -> None:
        found = any_detector.detect(image)
        assert found.boxes.shape == (0, 4)
        assert found.scores.shape == (0,)
        assert landmarks_of(found).shape == (0, 5, 2)


class TestScrfdVariants:
    """The same network with other output layouts, as other exports of SCRFD have them."""

    @staticmethod
    def with_outputs(source: Path, target: Path, *, landmarks: bool, joined: bool) -> Path:
        import onnx
        from onnx import TensorProto, helper

        model = onnx.load(str(source))
        names = [output.name for output in model.graph.output]
        kinds = [(names[:3], 1), (names[3:6], 4), (names[6:], 10)][: 3 if landmarks else 2]
        kept = []
        for kind, channels in kinds:
            if joined:
                name = f"all_{channels}"
                model.graph.node.append(helper.make_node("Concat", kind, [name], axis=0))
                kind = [name]  # noqa: PLW2901 - one head instead of three
            kept += [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, channels]) for n in kind
            ]
        del model.graph.output[:]
        model.graph.output.extend(kept)
        onnx.save(model, str(target))
        return target

    @pytest.mark.parametrize(
        ("outputs", "landmarks", "joined"),
        [(9, True, False), (6, False, False), (3, True, True), (2, False, True)],
    )
    def test_output_layouts(
        self,
        *,
        tmp_path: Path,
        scrfd_file: Path,
        load_detector: LoadDetector,
        group_image: Image,
        scrfd_on_group: Detections,
        outputs: int,
        landmarks: bool,
        joined: bool,
    ) -> None:
        pytest.importorskip("onnx", reason="onnx is not installed")
        file = self.with_outputs(
            scrfd_file, tmp_path / "variant.onnx", landmarks=landmarks, joined=joined
        )
        variant = load_detector(file, "scrfd")
        assert len(variant._model.output_names) == outputs
        assert variant.has_landmarks is landmarks
        reference, found = scrfd_on_group, variant.detect(group_image)
        assert np.array_equal(found.boxes, reference.boxes)
        assert np.array_equal(found.scores, reference.scores)
        if landmarks:
            assert np.array_equal(landmarks_of(found), landmarks_of(reference))
        else:
            assert found.landmarks is None

    @pytest.mark.parametrize("size", [(320, 320), (480, 640), (640, 320)])
    def test_a_network_of_one_input_size(
        self,
        *,
        tmp_path: Path,
        scrfd_file: Path,
        scrfd: Detector,
        load_detector: LoadDetector,
        group_image: Image,
        overlap: Overlap,
        size: tuple[int, int],
    ) -> None:
        onnx = pytest.importorskip("onnx", reason="onnx is not installed")
        model = onnx.load(str(scrfd_file))
        axes = model.graph.input[0].type.tensor_type.shape.dim
        for axis, value in zip((axes[2], axes[3]), size, strict=True):
            axis.dim_value = value
        onnx.save(model, str(tmp_path / "fixed.onnx"))
        fixed = load_detector(tmp_path / "fixed.onnx", "scrfd")
        for image in (group_image, np.ascontiguousarray(group_image[:, 700:1050])):
            reference, found = scrfd.detect(image), fixed.detect(image)
            assert len(found) == len(reference)
            if len(found):
                assert overlap(reference.boxes, found.boxes).max(axis=1).min() > 0.75

    def test_five_strides(self) -> None:
        """Heads by hand, for a canvas that the two coarse strides do not divide."""
        size = (96, 160)
        grids = {8: (12, 20), 16: (6, 10), 32: (3, 5), 64: (2, 3), 128: (1, 2)}
        heads: list[FloatArray] = []
        for channels in (1, 4, 10):
            heads += [np.zeros((r * c, channels), np.float32) for r, c in grids.values()]
        cell = 1 * 3 + 2  # stride 64: second row, third column
        heads[3][cell] = 0.9
        heads[5 + 3][cell] = [0.5, 0.25, 1.0, 0.75]
        heads[10 + 3][cell] = np.tile([0.5, -0.5], 5)
        found = decode_scrfd(heads, 0.5, size)
        assert found.boxes.tolist() == [[128 - 32, 64 - 16, 128 + 64, 64 + 48]]
        assert landmarks_of(found)[0].tolist() == [[128 + 32, 64 - 32]] * 5


class TestLetterbox:
    @pytest.mark.parametrize("whole", [True, False])
    @pytest.mark.parametrize("margin", [0.0, 0.5])
    @pytest.mark.parametrize("shape", [(640, 640), (333, 777), (1, 2000), (2000, 1), (1, 1)])
    def test_the_way_there_and_back(
        self, shape: tuple[int, int], margin: float, whole: bool
    ) -> None:
        image = np.full((*shape, 3), 200, np.uint8)
        framing = Framing(640, 640, 640, whole=whole, one_scale=False)
        boxed = letterbox(image.shape, framing, margin)
        canvas = boxed.drawn(image)
        rows, columns = (int(v) for v in np.ptp(np.argwhere(canvas[:, :, 0]), axis=0) + 1)
        left, top = boxed.origin
        corners = np.array([[left, top, left + columns, top + rows]], np.float32)
        back = boxed.restore(Detections(corners, np.ones(1, np.float32), None))
        assert np.allclose(back.boxes, [[0, 0, shape[1], shape[0]]], atol=0.01)
        assert all(side % 32 == 0 and side <= 640 for side in canvas.shape[:2])
        if whole:
            assert canvas.shape == (640, 640, 3)

    @pytest.mark.parametrize("rotation", [0, 90, 180, 270])
    @pytest.mark.parametrize("margin", [0.0, 0.5])
    @pytest.mark.parametrize("shape", [(640, 640), (320, 640), (333, 777), (1, 2000), (1, 1)])
    def test_nothing_is_left_of_what_the_canvas_held(
        self, shape: tuple[int, int], margin: float, rotation: int
    ) -> None:
        """It is a place in a batch, which other photos have used, and lies between others."""
        image = np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8)
        framing = Framing(640, 640, 640, whole=True, one_scale=False)
        boxed = letterbox(image.shape, framing, margin, rotation)
        batch = np.full((3, *boxed.size, 3), 77, np.uint8)
        boxed.draw(image, batch[1])
        assert np.array_equal(batch[1], boxed.drawn(image))
        assert (batch[::2] == 77).all()
        inside = batch[1][boxed.top :][: boxed.rows, boxed.left :][:, : boxed.columns]
        sizes = (boxed.columns, boxed.rows)
        turned = np.ascontiguousarray(np.rot90(image, -rotation // 90))
        if rotation == 0:
            assert np.array_equal(inside, cv2.resize(image, sizes))
        else:  # turned first or scaled first: rounded differently
            assert np.abs(inside.astype(int) - cv2.resize(turned, sizes)).max() <= 1
        assert batch[1].sum() == inside.sum()

    @pytest.mark.parametrize(
        ("shape", "canvas", "scale"),
        [((250, 250), (320, 320), 1.28), ((320, 200), (320, 224), 1.0),
         ((300, 400), (320, 416), 1.0), ((800, 1000), (512, 640), 0.64)],
    )  # fmt: skip
    def test_no_more_pixels_than_the_photo_has_or_needs(
        self, shape: tuple[int, int], canvas: tuple[int, int], scale: float
    ) -> None:
        framing = Framing(640, 640, 320, whole=False, one_scale=False)
        boxed = letterbox(shape, framing)
        assert boxed.size == canvas
        assert boxed.scale == pytest.approx([scale, scale], rel=0.01)

    def test_an_own_canvas_wastes_less_than_a_stride(self) -> None:
        framing = Framing(640, 640, 640, whole=False, one_scale=False)
        assert letterbox((480, 640), framing).size == (480, 640)


class TestSuppression:
    def test_the_better_of_two_that_overlap_remains(self) -> None:
        boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [40, 40, 60, 60]], np.float32)
        found = Detections(boxes, np.array([0.6, 0.9, 0.7], np.float32), None)
        assert suppress(found, 0.4).scores.tolist() == pytest.approx([0.9, 0.7])
        assert len(suppress(found, 0.9)) == 3


def test_a_network_is_tried_with_a_small_image_where_it_takes_any(
    pack: ModelPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, shapes = OnnxModel(pack.detector_path, Device.CPU), list[tuple[int, ...]]()
    run = network.run
    monkeypatch.setattr(network, "run", lambda batch: shapes.append(batch.shape) or run(batch))
    Detector(network, pack.detector)
    Detector(network, pack.detector, whole_canvas=True)
    assert shapes == [(1, 3, 64, 96), (1, 3, 640, 640)]


class TestPackMistakes:
    @pytest.mark.parametrize("claimed", ["scrfd", "yunet"])
    def test_centerface_under_another_name(
        self, pack: ModelPack, load_detector: LoadDetector, claimed: str
    ) -> None:
        with pytest.raises(PackError, match=f"like a {claimed} detector.*detector.architecture"):
            load_detector(pack.detector_path, claimed)

    @pytest.mark.parametrize(
        ("file", "claimed"),
        [
            ("insightface/det_500m.onnx", "centerface"),
            ("insightface/det_500m.onnx", "yunet"),
            ("yunet/yunet_n_dynamic.onnx", "centerface"),
            ("yunet/yunet_n_dynamic.onnx", "scrfd"),
        ],
    )
    def test_others_under_another_name(
        self, eval_models: Path, load_detector: LoadDetector, file: str, claimed: str
    ) -> None:
        with pytest.raises(PackError, match=r"Correct detector\.architecture in pack\.toml"):
            load_detector(eval_models / file, claimed)

    @pytest.mark.parametrize("claimed", ["centerface", "scrfd", "yunet"])
    def test_a_recogniser_is_no_detector(
        self, pack: ModelPack, load_detector: LoadDetector, claimed: str
    ) -> None:
        with pytest.raises(PackError, match=r"recogniser\.onnx does not answer like"):
            load_detector(pack.recogniser_path, claimed)
