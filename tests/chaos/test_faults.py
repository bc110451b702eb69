"""Disks and databases that fail: writes are refused, reads go on, recovery needs nobody."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from app.errors import StoreFull, StoreUnavailable
from app.gallery.gallery import Gallery
from app.store.records import NewTemplate
from app.store.store import Store
from tests.chaos.gallery_process import open_gallery, vector_of
from tests.gallery.conftest import open_engine
from tests.ports import free_port
from tests.postgres import PostgresServer
from tests.writing import delete_person, enroll_person, store_person

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def enroll(gallery: Gallery, person: str, numbers: range = range(1)) -> None:
    new = [NewTemplate(vector_of(person, number), str(number)) for number in numbers]
    enroll_person(gallery, "default", person, None, new)


def nearest(gallery: Gallery, person: str, number: int = 0) -> str | None:
    (row,) = gallery.identify("default", vector_of(person, number)[np.newaxis], 1).rows
    return row[0].face.person_id if row and row[0].similarity > 0.999 else None


def refusals(work: Callable[[], None]) -> type[Exception] | None:
    try:
        work()
    except (StoreFull, StoreUnavailable) as error:
        return type(error)
    return None


def test_a_full_disk(small_disk: Path) -> None:
    gallery = open_gallery(f"sqlite:///{small_disk / 'likeness.db'}", small_disk / "index")
    kept = 0
    for person in range(1_000):
        if refusals(partial(enroll, gallery, f"p{person}", range(200))):
            break
        kept += 1
        # encrypts, and tries to keep snapshots: that fails too, and harms nothing
        gallery.run_maintenance()
    assert 2 < kept < 1_000
    assert refusals(lambda: enroll(gallery, "late", range(200))) is StoreFull
    assert gallery.store.database.refusal == "storage_full"
    assert nearest(gallery, "p1", 7) == "p1"
    assert nearest(gallery, "late") is None
    subprocess.run(["mount", "-o", "remount,size=24m", small_disk], check=True)
    enroll(gallery, "late")
    assert gallery.store.database.refusal is None
    assert nearest(gallery, "late") == "late"
    delete_person(gallery, "default", "p0")
    gallery.run_maintenance()
    assert gallery.check_index("default").clean
    gallery.close()
    again = open_gallery(f"sqlite:///{small_disk / 'likeness.db'}", small_disk / "index")
    assert again.size("default").persons == kept
    again.close()


# Put before the C library: calls fail as on a broken disk while a file exists.
BROKEN_CALLS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>
#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))
#define WRITE_ARGS int, const void *, size_t, off_t
static int broken(void) { return access(getenv("BROKEN_DISK"), F_OK) == 0; }
static int fails(int error) { errno = error; return -1; }
#ifdef CANNOT_SYNC
int fsync(int fd) { return broken() ? fails(EIO) : REAL(int, "fsync", int)(fd); }
int fdatasync(int fd) { return broken() ? fails(EIO) : REAL(int, "fdatasync", int)(fd); }
#else
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) {
    return broken() ? fails(EROFS) : REAL(ssize_t, "pwrite", WRITE_ARGS)(fd, b, n, o);
}
ssize_t pwrite64(int fd, const void *b, size_t n, off_t o) {
    return broken() ? fails(EROFS) : REAL(ssize_t, "pwrite64", WRITE_ARGS)(fd, b, n, o);
}
#endif
"""

ON_A_BROKEN_DISK = """
import os, sys
from pathlib import Path
from tests.chaos.test_faults import enroll, nearest, refusals
from tests.chaos.gallery_process import open_gallery
folder, flag = Path(sys.argv[1]), Path(os.environ["BROKEN_DISK"])
gallery = open_gallery(f"sqlite:///{folder / 'likeness.db'}", folder / "index")
enroll(gallery, "ada")
flag.touch()
print(refusals(lambda: enroll(gallery, "bob")), nearest(gallery, "ada"), nearest(gallery, "bob"))
for replica in gallery._replicas.values():
    replica.save()
flag.unlink()
enroll(gallery, "bob")
print(nearest(gallery, "bob"), gallery.check_index("default").clean)
gallery.close()
"""


@pytest.mark.parametrize("fault", ["CANNOT_SYNC", "CANNOT_WRITE"])
def test_a_broken_disk(tmp_path: Path, fault: str) -> None:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    source, library = tmp_path / "broken.c", tmp_path / "broken.so"
    source.write_text(BROKEN_CALLS)
    subprocess.run(
        ["cc", f"-D{fault}", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True
    )
    environment = {
        **os.environ, "LD_PRELOAD": str(library), "BROKEN_DISK": str(tmp_path / "broken"),
    }  # fmt: skip
    reported = subprocess.run(
        [sys.executable, "-c", ON_A_BROKEN_DISK, tmp_path],
        cwd=ROOT, env=environment, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    assert reported == ["<class 'app.errors.StoreUnavailable'> ada None", "bob True"]


def test_a_clock_that_jumps_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'likeness.db'}"
    gallery = open_gallery(url, tmp_path / "index")
    enroll(gallery, "ada")
    gallery.close()
    past = datetime(1999, 1, 1, tzinfo=UTC)
    late = Store(open_engine(url), clock=lambda: past)
    store_person(late, "default", "bob", None, [NewTemplate(vector_of("bob", 0), "0")])
    late.persons.delete("default", "ada")
    gallery = open_gallery(url, tmp_path / "index")
    assert nearest(gallery, "bob") == "bob"
    assert nearest(gallery, "ada") is None
    gallery.close()


def test_a_database_that_goes_and_comes_back_over_http(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    environment = {
        **os.environ, "LIKENESS_DATA_DIR": str(tmp_path), "LIKENESS_PORT": str(free_port()),
        "LIKENESS_DATABASE_URL": postgres.new_database(),
    }  # fmt: skip
    likeness = Path(sys.executable).parent / "likeness"
    with (
        subprocess.Popen([likeness, "serve"], cwd=ROOT, env=environment) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{environment['LIKENESS_PORT']}") as client,
    ):
        try:
            wait_for(client)
            assert ask(client, "ada").status_code == 200
            postgres.stop()
            try:
                refused = ask(client, "bob")
                assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
                assert client.get("/readyz").status_code == 503
                assert client.get("/livez").status_code == 200
            finally:
                postgres.start()
            assert ask(client, "bob").status_code == 200
            assert client.get("/readyz").status_code == 200
            assert client.get("/v1/collections/default").json()["persons"] == 2
        finally:
            service.terminate()


def ask(client: httpx.Client, person: str) -> httpx.Response:
    """Enroll an embedding of the default pack."""
    embedding = np.eye(192)[0].tolist()
    return client.post(
        "/v1/enroll", json={"person_id": person, "embeddings": [embedding]}, timeout=60
    )


def wait_for(client: httpx.Client) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if client.get("/readyz").status_code == 200:
                return
        time.sleep(0.1)
    pytest.fail("the service does not become ready")
