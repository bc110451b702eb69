"""The access keys in the memory of a process, never older than a lease.

A request reads no database: it uses what was read at most `LEASE_S` ago. A revocation is
acknowledged `LEASE_S` after its commit; by then every process has read it, or uses no key at all
until it has. The lease is measured by each process's own monotonic clock, from before the read.
"""

import hmac
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from app.access.keys import AccessKey, digest_of, id_of
from app.access.store import AccessKeyStore, StoredKey, hour_of
from app.errors import LikenessError
from app.gallery.sql.part import now_utc
from app.locks import new_lock
from app.telemetry.logs import log

LEASE_S = 2.0
POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read, and when the read began. Replaced as a whole."""

    began: float
    revision: int
    keys: Mapping[str, StoredKey]


class AccessRegistry:
    """Tells whose a token is. A thread keeps it up to date until `close`."""

    def __init__(
        self,
        store: AccessKeyStore,
        pepper: bytes,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = now_utc,
    ) -> None:
        """Reads the keys once. Raises StoreUnavailable."""
        self._store = store
        self._pepper = pepper
        self._clock = clock
        self._now = now
        self._refreshing = new_lock("access.refreshing")
        self._used: dict[str, datetime] = {}  # hours that are not stored yet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="access-keys", daemon=True)
        began = clock()
        self._read = _Read(began, *store.all())

    @property
    def enabled(self) -> bool:
        """Whether requests need a key: once one was created, also if all were revoked since."""
        return bool(self._read.keys)

    @property
    def fresh(self) -> bool:
        """Whether the lease has not ended."""
        return self._clock() - self._read.began < LEASE_S

    def refresh(self) -> None:
        """Read the keys if they have changed, and begin a new lease. Raises StoreUnavailable."""
        with self._refreshing:
            began, read = self._clock(), self._read
            if self._store.revision() == read.revision:
                self._read = _Read(began, read.revision, read.keys)
            else:
                self._read = _Read(began, *self._store.all())

    def key_of(self, token: str) -> AccessKey | None:
        """The usable key of a token; None for anything else. The lease must be `fresh`."""
        key_id = id_of(token)
        found = None if key_id is None else self._read.keys.get(key_id)
        # Also for an unknown id, so that the time tells nothing about ids.
        digest = digest_of(token, self._pepper)
        expected = digest if found is None else found.digest
        if not hmac.compare_digest(digest, expected) or found is None:
            return None
        now = self._now()
        if not found.key.usable(now):
            return None
        self._note_use(found.key, now)
        return found.key

    def usable(self, key: AccessKey) -> bool:
        """Whether a key that was accepted before is usable still, as far as this process knows."""
        found = self._read.keys.get(key.key_id)
        return found is not None and found.key.usable(self._now())

    def start(self) -> None:
        """Begin to keep it up to date, unless that was done before."""
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _note_use(self, key: AccessKey, now: datetime) -> None:
        hour = hour_of(now)
        if key.last_used_at is None or key.last_used_at < hour:
            self._used.setdefault(key.key_id, hour)

    def _run(self) -> None:
        stored: dict[str, datetime] = {}  # until the keys are read again
        while not self._stop.wait(POLL_S):
            try:
                self.refresh()
                used = {key: at for key, at in list(self._used.items()) if stored.get(key) != at}
                if used:
                    self._store.note_use(used)
                    stored |= used
                for key in list(self._used):
                    self._used.pop(key, None)
            except LikenessError as error:
                # Requests read the keys themselves until then, or are refused.
                log(logging.DEBUG, "the access keys were not read", code=error.code)
