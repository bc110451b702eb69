"""Real photos with labels, and the default pack to measure on them."""

import csv
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from app.faces.loading import build_pipeline
from app.faces.pipeline import FacePipeline
from app.imaging import ImageLimits
from app.inference.packs import load_pack
from app.settings import Device

PHOTOS = Path(__file__).resolve().parents[2] / "data" / "photos"


@pytest.fixture(scope="session")
def pipeline() -> FacePipeline:
    return build_pipeline(load_pack("default"), Device.CPU, ImageLimits())


@pytest.fixture
def labelled_folder(tmp_path: Path) -> Path:
    """images/ with four portraits, one photo of nobody and a broken one; pairs.csv beside it."""
    images = tmp_path / "images"
    shutil.copytree(PHOTOS, images)
    cv2.imwrite(str(images / "nobody.png"), np.full((200, 200, 3), 128, dtype=np.uint8))
    (images / "broken.jpg").write_bytes((PHOTOS / "biden.jpg").read_bytes()[:2000])
    rows = [("obama.jpg", "obama2.jpg", 1)] * 10 + [("biden.jpg", "obama.jpg", 0)] * 10
    rows += [("obama.jpg", "nobody.png", 1), ("biden.jpg", "broken.jpg", 0)]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image_a", "image_b", "same"), *rows])
    return tmp_path
