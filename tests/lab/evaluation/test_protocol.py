"""Photos through a real pack, failures to enroll included."""

import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from app.faces.pipeline import FacePipeline
from app.lab.evaluation.cache import PhotoCache
from app.lab.evaluation.labels import EvaluationError, LabelledPairs, read_pairs
from app.lab.evaluation.protocol import (
    FAILED_SIMILARITY,
    Analyser,
    check_pairs,
    check_photos,
    detect_photos,
    enrol_photos,
    pair_similarities,
)


def test_failures_to_enrol_are_listed_and_cost_their_pairs(
    pipeline: FacePipeline, labelled_folder: Path
) -> None:
    pairs = read_pairs(labelled_folder / "pairs.csv")
    ticks: list[None] = []
    enrolled = enrol_photos(
        Analyser(pipeline),
        labelled_folder / "images",
        pairs.photos,
        tick=lambda: ticks.append(None),
    )
    assert {(failure.image, failure.code) for failure in enrolled.failures} == {
        ("nobody.png", "no_face"),
        ("broken.jpg", "unreadable_image"),
    }
    assert len(ticks) == len(pairs.photos)
    similarities = pair_similarities(pairs, enrolled)
    assert similarities[-2:].tolist() == [FAILED_SIMILARITY] * 2
    assert similarities[0] > 0.4 > similarities[10]


def test_too_few_pairs_are_refused_before_any_photo_is_read() -> None:
    same = np.arange(25) < 20
    with pytest.raises(EvaluationError, match="20 mated and 5 non-mated pairs are too few"):
        check_pairs(LabelledPairs(("a",) * 25, ("b",) * 25, same))


def test_photos_that_are_not_there_are_no_failures_to_enrol(labelled_folder: Path) -> None:
    with pytest.raises(EvaluationError, match=r"1 of 2 photos are not below .* lost.jpg"):
        check_photos(labelled_folder / "images", ["obama.jpg", "lost.jpg"])


def test_detections_are_matched_to_labels(pipeline: FacePipeline, labelled_folder: Path) -> None:
    images = labelled_folder / "images"
    face = pipeline.analyse((images / "obama.jpg").read_bytes(), max_faces=1).faces[0]
    labels = {"obama.jpg": face.box[np.newaxis], "broken.jpg": face.box[np.newaxis]}
    detected = detect_photos(Analyser(pipeline), images, labels)
    assert [match.face_found.tolist() for match in detected.matches] == [[True], [False]]
    assert detected.matches[0].unmatched == 0
    assert [failure.code for failure in detected.failures] == ["unreadable_image"]


def test_a_file_that_cannot_be_read_is_counted_and_not_fatal(
    pipeline: FacePipeline, labelled_folder: Path
) -> None:
    (labelled_folder / "images" / "0.jpg").mkdir()  # a folder where a photo should be
    enrolled = enrol_photos(Analyser(pipeline), labelled_folder / "images", ["0.jpg", "obama.jpg"])
    assert [failure.code for failure in enrolled.failures] == ["unreadable_image"]
    assert list(enrolled.faces) == ["obama.jpg"]


def test_an_unexpected_error_ends_the_run_at_once(
    pipeline: FacePipeline, labelled_folder: Path
) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        enrol_photos(
            Analyser(pipeline), labelled_folder / "images", ["obama.jpg"] * 1000, tick=broken
        )
    assert not [t for t in threading.enumerate() if t.name.startswith("evaluate")]


def test_a_second_run_answers_from_the_cache(
    pipeline: FacePipeline, labelled_folder: Path, tmp_path: Path
) -> None:
    names = ["obama.jpg", "biden.jpg", "nobody.png", "broken.jpg"]
    path = tmp_path / "cache" / "photos.db"
    results = []
    for _ in range(2):
        store = PhotoCache(path, "one pipeline", pytest.fail)
        analyser = Analyser(pipeline, store)
        results.append(enrol_photos(analyser, labelled_folder / "images", names))
        store.close()
    first, second = results
    assert analyser.cached == 3
    assert analyser.stages_ms.get("embed") is None
    assert second.failures == first.failures
    for name, face in first.faces.items():
        again = second.faces[name]
        assert (again.quality, again.score) == (face.quality, face.score)
        for one, other in ((again.box, face.box), (again.embedding, face.embedding)):
            assert np.array_equal(np.asarray(one), np.asarray(other))
    assert path.stat().st_mode & 0o077 == 0  # embeddings are for their owner alone


def test_another_pipeline_does_not_find_them(
    pipeline: FacePipeline, labelled_folder: Path, tmp_path: Path
) -> None:
    for name in ("one pipeline", "another"):
        store = PhotoCache(tmp_path / "photos.db", name, pytest.fail)
        analyser = Analyser(pipeline, store)
        enrol_photos(analyser, labelled_folder / "images", ["obama.jpg"])
        store.close()
        assert analyser.cached == 0


def test_the_face_nearest_the_centre_counts(pipeline: FacePipeline, labelled_folder: Path) -> None:
    """A bystander twice as large at the edge does not speak for the photo."""
    images = labelled_folder / "images"
    person, bystander = (cv2.imread(str(images / n)) for n in ("obama.jpg", "biden.jpg"))
    assert person is not None
    assert bystander is not None
    canvas = np.zeros((400, 1000, 3), dtype=np.uint8)
    canvas[100:300, 400:600] = cv2.resize(person, (200, 200))
    canvas[:, :400] = cv2.resize(bystander, (400, 400))
    cv2.imwrite(str(images / "two.png"), canvas)
    faces = enrol_photos(Analyser(pipeline), images, ["two.png", "obama.jpg"]).faces
    one, two = (faces[name].embedding for name in ("two.png", "obama.jpg"))
    assert one is not None
    assert two is not None
    assert float(one @ two) > 0.4
