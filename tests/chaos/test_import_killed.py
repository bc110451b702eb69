"""An import that is killed again and again ends in the gallery that one clean run makes."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from app.gallery.backends import create_engine

pytestmark = pytest.mark.chaos

LIKENESS = Path(sys.executable).parent / "likeness"
PEOPLE, KILLS = 40, 5


def start(folder: Path, data: Path) -> "subprocess.Popen[bytes]":
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LIKENESS_")}
    return subprocess.Popen(
        [LIKENESS, "import", folder, "--near-duplicate", "0.9", "--on-conflict", "skip"],
        env={**clean, "LIKENESS_DATA_DIR": str(data)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def gallery_of(data: Path) -> list[tuple[str, str]]:
    engine = create_engine(f"sqlite:///{data / 'likeness.db'}")
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT persons.person_id, templates.content_digest FROM templates "
                "JOIN persons ON persons.id = templates.person ORDER BY templates.id"
            )
        ).all()
    engine.dispose()
    return [(row.person_id, row.content_digest) for row in rows]


def test_kill_9_and_again(tmp_path: Path, evaluation_faces: Path) -> None:
    folder = tmp_path / "people"
    for person in sorted(evaluation_faces.iterdir())[:PEOPLE]:
        shutil.copytree(person, folder / person.name)
    # A copy of another's photo, and the same photo twice: what order could change.
    first, second = sorted(folder.iterdir())[:2]
    shutil.copy(next(first.iterdir()), second / "zz_of_another.jpg")
    assert start(folder, tmp_path / "clean").wait(timeout=300) in (0, 1)
    moments = random.Random(7)
    for _ in range(KILLS):
        process = start(folder, tmp_path / "killed")
        time.sleep(moments.uniform(1.5, 4.0))
        process.kill()
        process.wait()
    assert start(folder, tmp_path / "killed").wait(timeout=300) in (0, 1)
    assert gallery_of(tmp_path / "killed") == gallery_of(tmp_path / "clean")
    assert len(gallery_of(tmp_path / "clean")) >= PEOPLE
