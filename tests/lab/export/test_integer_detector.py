"""A detector in 8-bit integers: what is quantised, what it is proven on, what is refused."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from app.inference.pack_spec import ModelPack
from app.lab.export import integer_detector
from app.lab.export.integer_detector import (
    MINIMUM_PHOTOS,
    CalibrationPhotos,
    DetectorAgreement,
    export_integer_detector,
    provenance,
)
from app.lab.export.parity import ExportError, ParityError


@pytest.fixture(scope="module")
def faces(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twice as many small photos as are needed: those of the tests, changed a little each."""
    folder = tmp_path_factory.mktemp("faces")
    sources = sorted(photos.glob("*.jpg"))
    for number in range(2 * MINIMUM_PHOTOS):
        image = cv2.imread(str(sources[number % len(sources)]))
        assert image is not None
        scale = 160 / max(image.shape[:2])
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        shown = cv2.convertScaleAbs(small, alpha=0.8 + 0.01 * number, beta=number)
        cv2.imwrite(str(folder / f"{number:02}.png"), shown)
    return folder


@pytest.mark.slow
def test_it_finds_the_same_faces_in_a_third_of_the_bytes(
    pack: ModelPack, faces: Path, tmp_path: Path
) -> None:
    photos = CalibrationPhotos.of_folder(faces)
    outs = [tmp_path / f"{name}.onnx" for name in ("first", "second")]
    made = [export_integer_detector(pack.detector_path, pack.detector, photos, out) for out in outs]
    assert made[0] == made[1]  # the same bytes, too
    found = made[0].agreement
    assert found.photos == MINIMUM_PHOTOS
    assert found.found >= 0.95 * found.faces
    assert 0 < found.median_distance < 0.02
    assert outs[0].stat().st_size < 0.31 * pack.detector_path.stat().st_size
    assert provenance(made[0])["photos"] == MINIMUM_PHOTOS
    graph = onnx.load(outs[0]).graph
    weights = {weight.name: weight for weight in graph.initializer}
    floats = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in weights]
    # Those of the heads and the first three; the weights of the others are dequantised.
    assert len(floats) == 4 + 3
    assert {weights[node.input[1]].data_type for node in floats} == {onnx.TensorProto.FLOAT}


def test_other_photos_have_another_digest(faces: Path) -> None:
    photos = CalibrationPhotos.of_folder(faces)
    assert set(photos.ranges).isdisjoint(photos.proof)
    digests = {integer_detector._digest(each) for each in (photos.ranges, photos.proof)}
    assert len(digests | {integer_detector._digest(photos.ranges[::-1])}) == 3


def test_too_few_photos_are_refused(faces: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted(faces.iterdir())):
        if number < 2 * MINIMUM_PHOTOS - 1:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ExportError, match="has 39 photos; at least 40 are needed"):
        CalibrationPhotos.of_folder(tmp_path)
    assert len(CalibrationPhotos.of_folders(tmp_path, faces).ranges) == 39
    with pytest.raises(ExportError, match="is not a folder"):
        CalibrationPhotos.of_folder(tmp_path / "missing")


def test_a_photo_that_cannot_be_read_is_named(pack: ModelPack, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    photos = CalibrationPhotos((tmp_path / "broken.jpg",), ())
    out = tmp_path / "out.onnx"
    with pytest.raises(ExportError, match=r"broken\.jpg is not a photo that can be read"):
        export_integer_detector(pack.detector_path, pack.detector, photos, out)
    assert not out.exists()


def test_another_network_is_refused(pack: ModelPack, faces: Path, tmp_path: Path) -> None:
    photos, out = CalibrationPhotos.of_folder(faces), tmp_path / "out.onnx"
    with pytest.raises(ExportError, match="does not answer like a centerface detector"):
        export_integer_detector(pack.recogniser_path, pack.detector, photos, out)
    fixed = onnx.load(pack.detector_path)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    with pytest.raises(ExportError, match=r"takes one size of batch: .* variable"):
        export_integer_detector(tmp_path / "fixed.onnx", pack.detector, photos, out)
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ExportError, match=r"text\.onnx is not an ONNX file"):
        export_integer_detector(tmp_path / "text.onnx", pack.detector, photos, out)
    assert not out.exists()


def test_photos_without_faces_prove_nothing(pack: ModelPack, tmp_path: Path) -> None:
    blank = tmp_path / "blank.png"
    cv2.imwrite(str(blank), np.zeros((64, 64, 3), np.uint8))
    source = pack.detector_path
    with pytest.raises(ExportError, match=r"0 faces were found .* 20 are needed\. Add photos"):
        integer_detector._prove(source, source, pack.detector, [blank])


def test_another_answer_is_refused(pack: ModelPack, faces: Path, tmp_path: Path) -> None:
    """A network whose heatmap is too low to find faces."""
    model = onnx.load(pack.detector_path)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["high" if name == "heatmap" else name for name in node.output]
    graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    graph.node.append(onnx.helper.make_node("Mul", ["high", "half"], ["heatmap"]))
    wrong = tmp_path / "wrong.onnx"
    onnx.save(model, wrong)
    some = sorted(faces.iterdir())[:MINIMUM_PHOTOS]
    with pytest.raises(ParityError, match=r"finds 0 of the .* faces"):
        integer_detector._prove(pack.detector_path, wrong, pack.detector, some)


@pytest.mark.parametrize(
    ("found", "others", "distance", "fault"),
    [
        (95, 5, 0.02, None),
        (94, 0, 0.0, "finds 94 of the 100 faces"),
        (100, 6, 0.0, "finds 6 faces more"),
        (100, 0, 0.021, "move by 0.021"),
    ],
)
def test_limits_of_the_proof(found: int, others: int, distance: float, fault: str | None) -> None:
    agreement = DetectorAgreement(50, 100, found, others, 0.8, distance, 0.1)
    if fault is None:
        integer_detector._accept(agreement)
        return
    with pytest.raises(ParityError, match=fault):
        integer_detector._accept(agreement)
