"""A folder of snapshots that this user cannot use: refused at the start; if it becomes so later,
deletions are answered, and reported as pending until the files are gone."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from app.gallery.gallery import Gallery
from app.index.certified.rows import IndexShape
from app.index.certified.snapshots.catalog import IndexFolderError
from app.index.factory import IndexFactory
from app.store.backends import create_engine
from app.store.records import Erasure
from app.store.schema import migrate
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, template
from tests.waiting import PATIENCE_S
from tests.writing import delete_collection, delete_person, enroll_person

NOBODY = 65534  # the user id that Linux has for who owns nothing

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def opened(folder: Path) -> Gallery:
    engine = create_engine(f"sqlite:///{folder / 'likeness.db'}")
    migrate(engine)
    factory = IndexFactory(1, folder / "index", shape=IndexShape(encode_at=16))
    return Gallery(Store(engine), factory, SPACE, DIMENSION)


def snapshots(folder: Path) -> list[Path]:
    """The folders of collections."""
    return sorted(one for one in (folder / "index").glob("*/*") if one.is_dir())


def filled(folder: Path) -> Gallery:
    """With two collections that have snapshots, and one that has no index."""
    gallery = opened(folder)
    gallery.create_collection("second", {})
    gallery.create_collection("unopened", {})
    for name in ("default", "second"):
        for number, vector in enumerate(np.eye(DIMENSION, dtype=np.float32)[:4]):
            enroll_person(gallery, name, f"p{number}", None, [template(vector, str(number))])
    gallery.run_maintenance()
    return gallery


def import_everything() -> None:
    """The other user may not read Python's modules: what is imported late is imported by this."""
    with tempfile.TemporaryDirectory() as name:
        gallery = filled(Path(name))
        delete_person(gallery, "default", "p0")
        delete_collection(gallery, "second")
        gallery.run_maintenance()
        gallery.close()


def delete_beside_closed_folder(folder: Path, whole: bool) -> None:
    """What the other user does: delete persons and a collection while a folder is closed."""
    gallery = filled(folder)
    kept = snapshots(folder)
    assert len(kept) == 2
    closed = [folder / "index"] if whole else kept
    assert gallery.erasure_pending_s() == 0
    for one in closed:
        one.chmod(0)
    assert delete_collection(gallery, "second").erased is Erasure.PENDING
    unknown = Erasure.PENDING if whole else Erasure.DONE
    assert delete_collection(gallery, "unopened").erased is unknown
    assert delete_person(gallery, "default", "p0").erased is Erasure.PENDING
    for _ in range(2):
        assert gallery.erasure_pending_s() > 0
        with suppress(PermissionError):  # `upkeep` says so
            gallery.run_maintenance()
    for one in closed:
        one.chmod(0o700)
    gallery.run_maintenance()
    assert gallery.erasure_pending_s() == 0
    assert len(snapshots(folder)) == 1
    assert delete_person(gallery, "default", "p1").erased is Erasure.DONE
    gallery.close()


def report_start(folder: Path) -> None:
    """Print a line: the error of a start, if it is refused."""
    try:
        gallery = opened(folder)
    except IndexFolderError as error:
        sys.stdout.write(f"{error.detail}\n")
        return
    gallery.run_maintenance()
    gallery.close()
    sys.stdout.write("started\n")


def close_one_by_one(folder: Path) -> None:
    """A start without an index, and one beside each path that is closed."""
    report_start(folder)
    (of_database,) = (folder / "index").iterdir()
    (of_database / "7").mkdir()
    for path in (folder / "index", of_database, of_database / "7", of_database / "lock"):
        mode = path.stat().st_mode
        path.chmod(0)
        report_start(folder)
        path.chmod(mode)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder of the other user, in one that every user reaches."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        made = Path(name) / "data"
        made.mkdir(0o700)
        os.chown(made, NOBODY, NOBODY)
        yield made


def as_nobody(call: str) -> str:
    """What a function of this module prints for the other user."""
    code = (
        "import os\nfrom pathlib import Path\n"
        "from tests.gallery import test_index_folder as tests\n"
        f"tests.import_everything(); os.setgid({NOBODY}); os.setuid({NOBODY}); tests.{call}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("whole", [True, False])
def test_deletions_are_answered_and_repeated(folder: Path, whole: bool) -> None:
    as_nobody(f"delete_beside_closed_folder(Path('{folder}'), {whole})")


def test_a_start_names_what_cannot_be_used_and_the_command_for_it(folder: Path) -> None:
    index = folder / "index"
    first, *refused = as_nobody(f"close_one_by_one(Path('{folder}'))").splitlines()
    assert first == "started"
    assert len(refused) == 4
    for said in refused:
        assert f"The folder {index} cannot be read and written ({index}" in said
        assert f"sudo chmod -R u+rwX {index} (in a container" in said
    start = f"report_start(Path('{folder}'))"
    os.chown(index, 0, 0)
    assert f"sudo chown -R {NOBODY}:{NOBODY} {index} (in a container" in as_nobody(start)
