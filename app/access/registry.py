"""The access keys in the memory of a process, never older than a lease.

A request reads no database: it uses what was read at most `LEASE_S` ago. Only a token whose id was
not read waits for the next reading, so that a new key is accepted at once. A revocation is
acknowledged `LEASE_S` after its commit; by then every process has read it, or uses no key at all
until it has. The lease is measured by each process's own clock, from before the read; it also ends
while the machine is suspended.
"""

import hmac
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime

from app.access.keys import AccessKey, digest_of, id_of
from app.access.store import AccessKeyStore, StoredKey, hour_of
from app.clock import seconds
from app.errors import AccessPepperDiffers, LikenessError
from app.locks import new_lock
from app.store.database import now_utc
from app.telemetry.logs import log

LEASE_S = 2.0
POLL_S = 0.5
# From the end of a reading to the next: anyone may send ids that are unknown.
READINGS_APART_S = 0.1


@dataclass(frozen=True, slots=True)
class _Read:
    """What was read, and when the read began. Replaced as a whole."""

    began: float
    revision: int
    keys: Mapping[str, StoredKey]


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """Keys that were created, and those of them that are neither revoked nor expired."""

    created: int
    usable: int


class AccessRegistry:
    """Finds the key of a token. A thread keeps the keys up to date until `close`."""

    def __init__(
        self,
        store: AccessKeyStore,
        pepper: bytes,
        clock: Callable[[], float] = seconds,
        now: Callable[[], datetime] = now_utc,
    ) -> None:
        """Reads the keys once. Raises StoreUnavailable."""
        self._store = store
        self._pepper = pepper
        self._clock = clock
        self._now = now
        self._refreshing = new_lock("access.refreshing")
        self._used: dict[str, datetime] = {}  # hours that are not stored yet
        self._stored: dict[str, datetime] = {}  # hours that are, since the keys were read
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._next: Future[bool] = Future()  # the next reading
        self._thread = threading.Thread(target=self._run, name="access-keys", daemon=True)
        began = clock()
        self._read = _Read(began, *store.all())

    @property
    def enabled(self) -> bool:
        """Whether requests need a key: true once a key was created, also after all were revoked."""
        return bool(self._read.keys)

    def counts(self) -> KeyCounts:
        """How many keys were created, and how many of them are usable."""
        keys, now = self._read.keys.values(), self._now()
        return KeyCounts(len(keys), sum(stored.key.usable(now) for stored in keys))

    @property
    def fresh(self) -> bool:
        """Whether the lease has not ended."""
        return self._clock() - self._read.began < LEASE_S

    def refresh(self) -> None:
        """Read the keys if they have changed, and begin a new lease. Raises StoreUnavailable."""
        with self._refreshing:
            began, read = self._clock(), self._read
            changed = self._store.revision() != read.revision
            if changed:
                read = _Read(began, *self._store.all())
            if read.keys:
                self._store.require_in_place()
            self._read = _Read(began, read.revision, read.keys)
        if changed:
            self._warn_of_another_pepper()

    def renewal(self) -> Future[bool]:
        """Done when the thread has tried once more to read the keys, from now on: whether it has
        read them. Callers share it."""
        renewal = self._next
        self._wake.set()
        return renewal

    def key_of(self, token: str) -> AccessKey | None:
        """The usable key of a token; None for anything else. The lease must be `fresh`."""
        key_id = id_of(token)
        found = None if key_id is None else self._read.keys.get(key_id)
        # Also for an unknown id, so that the time reveals nothing about ids.
        digest = digest_of(token, self._pepper)
        expected = digest if found is None else found.digest
        if not hmac.compare_digest(digest, expected) or found is None:
            return None
        now = self._now()
        if not found.key.usable(now):
            return None
        self._note_use(found.key, now)
        return found.key

    def may_be_new(self, token: str) -> bool:
        """Whether a token has the id of a key that was not read: another process may have created
        it since. Says nothing about the token's secret; ids are public."""
        key_id = id_of(token)
        return key_id is not None and key_id not in self._read.keys

    def usable(self, key: AccessKey) -> bool:
        """Whether a key that was accepted before is still usable, by the last reading."""
        found = self._read.keys.get(key.key_id)
        return found is not None and found.key.usable(self._now())

    def start(self) -> None:
        """Begin to keep it up to date, unless that was done before."""
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def store_uses(self) -> None:
        """Store when keys were last used. Not on the thread that reads them: a write may have to
        wait for others."""
        used = dict(self._used)
        if not used:
            return
        try:
            self._store.note_use(used)
        except LikenessError as error:
            log(logging.DEBUG, "the last use of access keys was not stored", code=error.code)
            return
        self._stored |= used
        for key_id, hour in used.items():
            if self._used.get(key_id) == hour:
                del self._used[key_id]

    def _note_use(self, key: AccessKey, now: datetime) -> None:
        hour = hour_of(now)
        stored = self._stored.get(key.key_id, key.last_used_at)
        if stored is None or stored < hour:
            self._used[key.key_id] = hour

    def _warn_of_another_pepper(self) -> None:
        try:
            self._store.check_pepper()
        except AccessPepperDiffers as error:
            log(
                logging.WARNING, "access keys were created with another pepper", reason=error.detail
            )

    def _run(self) -> None:
        failing = False
        while True:
            self._stopping.wait(READINGS_APART_S)
            self._wake.wait(POLL_S - READINGS_APART_S)
            self._wake.clear()
            # Requests that call `renewal` from here on wait for the reading after this one.
            due, self._next = self._next, Future()
            if self._stopping.is_set():
                due.set_result(False)
                return
            read = False
            try:
                self.refresh()
                read, failing = True, False
            except Exception as error:  # noqa: BLE001 (the database may be away for a while)
                if not failing:
                    log(logging.WARNING, "the access keys cannot be read; without them no call is "
                        "accepted", reason=getattr(error, "detail", repr(error)))  # fmt: skip
                failing = True
            due.set_result(read)
