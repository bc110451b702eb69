"""Error rates before and after an export, on labelled pairs."""

import csv
from pathlib import Path

import pytest

from app.inference.pack_spec import ModelPack
from app.lab.export.accuracy import compare
from app.lab.export.faces import Normalisation
from app.lab.export.parity import ExportError
from app.lab.export.recogniser import read_onnx

PAIRS_OF_A_KIND = 12


@pytest.fixture
def few_pairs(eval_data: Path, tmp_path: Path) -> Path:
    """A CSV of LFW pairs with the photos beside it."""
    with (eval_data / "lfw" / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [row for same in ("1", "0") for row in rows if row["same"] == same][:PAIRS_OF_A_KIND]
    chosen += [row for row in rows if row["same"] == "0"][:PAIRS_OF_A_KIND]
    path = tmp_path / "pairs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image_a", "image_b", "same"])
        writer.writeheader()
        writer.writerows(chosen)
    (tmp_path / "images").symlink_to(eval_data / "lfw" / "images")
    return path


@pytest.mark.slow
def test_the_same_network_twice(pack: ModelPack, few_pairs: Path) -> None:
    spec = pack.recogniser
    source = read_onnx(pack.recogniser_path, Normalisation(spec.mean, spec.std))
    before, after = compare(source, pack.recogniser_path, few_pairs)
    assert (before[0], after[0]) == ("before", "after")
    assert before[1] == after[1]
    assert before[1].pairs == 2 * PAIRS_OF_A_KIND
    assert before[1].accuracy > 0.9


def test_pairs_that_cannot_be_read(pack: ModelPack, tmp_path: Path) -> None:
    source = read_onnx(pack.recogniser_path, Normalisation())
    with pytest.raises(ExportError, match="cannot be read"):
        list(compare(source, pack.recogniser_path, tmp_path / "absent.csv"))
