"""CSV files of labels, and what is said of wrong ones."""

import os
from pathlib import Path

import pytest

from app.cli.evaluate import _kind
from app.errors import ImageTooLarge
from app.lab.evaluation import protocol
from app.lab.evaluation.labels import (
    EvaluationError,
    read_attributes,
    read_faces,
    read_label_noise,
    read_pairs,
)
from app.lab.evaluation.protocol import read_photo
from app.lab.evaluation.run import photo_reader


def write(folder: Path, text: str) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(text.encode("latin-1"))
    return path


def test_pairs_and_their_photos_in_order(tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path, "image_a,image_b,same\nb.jpg,a.jpg,1\r\na.jpg,c.jpg,0\n"))
    assert pairs.same.tolist() == [True, False]
    assert pairs.photos == ["b.jpg", "a.jpg", "c.jpg"]


def test_boxes_of_each_photo(tmp_path: Path) -> None:
    text = "image,x1,y1,x2,y2\na.jpg,1,2,3.5,4\nb.jpg,0,0,9,9\na.jpg,5,6,7,8\n"
    faces = read_faces(write(tmp_path, text))
    assert {name: boxes.shape for name, boxes in faces.items()} == {
        "a.jpg": (2, 4),
        "b.jpg": (1, 4),
    }
    assert faces["a.jpg"].tolist() == [[1, 2, 3.5, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("image_a,image_b\na,b\n", "lacks the column same"),
        ("", "lacks the column image_a"),
        ("image_a,image_b,same\na,b,1\na,c,yes\n", "line 3: same is 'yes'"),
        ("image_a,image_b,same\na,b\n", "line 2: same is ''"),
        ("image_a,image_b,same\n\xff\xfe,b,1\n", "cannot be read as CSV"),
    ],
)
def test_wrong_pairs_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(EvaluationError, match=complaint):
        read_pairs(write(tmp_path, text))


@pytest.mark.parametrize("numbers", ["1,2,3", "1,2,3,wide", "1,2,,4"])
def test_wrong_boxes_are_named(tmp_path: Path, numbers: str) -> None:
    with pytest.raises(EvaluationError, match="line 2: a box needs four numbers"):
        read_faces(write(tmp_path, f"image,x1,y1,x2,y2\na.jpg,{numbers}\n"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="cannot be read"):
        read_pairs(tmp_path / "none.csv")


def sparse(path: Path, beginning: str = "") -> Path:
    """A file that takes no space; larger ones are no different."""
    path.write_text(beginning)
    os.truncate(path, 64 << 20)
    return path


@pytest.mark.parametrize("beginning", ["", "image_a,image_b,same\n"])
def test_a_huge_file_that_is_no_text_is_not_read_whole(tmp_path: Path, beginning: str) -> None:
    path = sparse(tmp_path / "huge", beginning)
    with pytest.raises(EvaluationError, match=r"line of more than 1,000,000 characters"):
        read_pairs(path)
    with pytest.raises(EvaluationError, match=r"line of more than 1,000,000 characters"):
        read_attributes(sparse(tmp_path / "groups", "person,sex\n" * bool(beginning)))
    if not beginning:
        with pytest.raises(EvaluationError, match=r"line of more than 1,000,000 characters"):
            _kind(path)


def test_a_huge_file_is_no_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_PHOTO_BYTES", 32 << 20)
    path = sparse(tmp_path / "huge.jpg")
    with pytest.raises(ImageTooLarge, match="more than 33,554,432 bytes"):
        read_photo(path)
    assert photo_reader([tmp_path])(path.name) is None


NOISE = "image,person_a,person_b\n"


def test_names_of_one_person_are_each_pair_once(tmp_path: Path) -> None:
    """Whichever lines join them: none is counted as a stranger to another, or subtracted twice."""
    text = ",ann,anna\n,bo,bob\n,anne,anna\nx.jpg,,\n,anna,ann\n"
    noise = read_label_noise(write(tmp_path, NOISE + text))
    assert noise.same_people == (
        ("ann", "anna"),
        ("ann", "anne"),
        ("anna", "anne"),
        ("bo", "bob"),
    )
    assert noise.images == {"x.jpg"}


def test_a_name_is_no_second_name_of_itself(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="line 3: bob is named twice"):
        read_label_noise(write(tmp_path, NOISE + ",ann,anna\n,bob,bob\n"))
