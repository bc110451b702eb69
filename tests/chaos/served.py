"""`likeness serve` as processes of their own, several over one database, ready to be killed."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from app.access.keys import NewKey, Scope, audit_key, read_pepper
from app.access.store import AccessKeyStore
from app.settings import Settings
from app.store.audit_verification import AuditVerification, verify_audit
from app.store.backends import create_engine
from app.store.database import Database
from app.store.schema import migrate
from app.store.sql.audit_log import AuditEntry, AuditStore
from tests.waiting import PATIENCE_S, until

LIKENESS = Path(sys.executable).with_name("likeness")
ADDRESS = re.compile(r"API +(http\S+)/v1")


class Installation:
    """A data folder, a database and their settings, which processes share."""

    def __init__(self, folder: Path, url: str | None = None, **settings: str) -> None:
        self.folder = folder
        self.settings = Settings(data_dir=folder, database_url=url)
        self._environment = {
            **os.environ,
            "LIKENESS_DATA_DIR": str(folder),
            "LIKENESS_PORT": "0",
            "LIKENESS_DRAIN_SECONDS": "0",
            "LIKENESS_WORKERS": "1",
            **({"LIKENESS_DATABASE_URL": url} if url else {}),
            **settings,
        }

    @contextmanager
    def database(self) -> Iterator[Database]:
        """The database, opened by this process."""
        engine = create_engine(self.settings.resolved_database_url)
        try:
            migrate(engine)
            yield Database(engine, audit_key=audit_key(self.settings))
        finally:
            engine.dispose()

    def create_key(self, name: str = "admin") -> str:
        """The token of a key with every scope."""
        with self.database() as database:
            store = AccessKeyStore(database, read_pepper(self.settings))
            return store.create(NewKey(name, [*Scope]))[1]

    def audit(self) -> tuple[AuditVerification, list[AuditEntry]]:
        """Whether the audit log is whole, and its entries."""
        with self.database() as database:
            everything = list(AuditStore(database).everything())
        entries = [one for one in everything if isinstance(one, AuditEntry)]
        return verify_audit(iter(everything), audit_key(self.settings)), entries

    def start(self) -> "Serving":
        """A process that serves it, when it is ready."""
        return Serving(self._environment)


class Serving:
    """One process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [LIKENESS, "serve"], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        found = None
        while found is None:
            line = self.process.stdout.readline()
            assert line, "it ended before it was ready"
            found = ADDRESS.search(line)
        self.url = found[1]
        until(lambda: self.ask("GET", "/readyz").status_code == 200)

    def ask(
        self, method: str, path: str, token: str = "", kind: str = "", **options: object
    ) -> httpx.Response:
        """One call on a connection of its own. `kind`: the content type of a body."""
        headers = {"Content-Type": kind} if kind else {}
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(base_url=self.url, timeout=PATIENCE_S) as client:
            return client.request(method, path, headers=headers, **options)  # type: ignore[arg-type]

    def kill(self) -> None:
        """End it as a power failure would."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.kill()
