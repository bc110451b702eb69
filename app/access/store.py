"""Access keys in the database, shared by every process: a digest of each token, never a token, and
the photos that keys have used, by day (UTC).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from app.access.keys import (
    AccessKey,
    KeyLimits,
    NewKey,
    Scope,
    digest_of,
    fingerprint,
    new_token,
    stored_limits,
)
from app.errors import AccessKeyExists, AccessKeyNotFound, AccessPepperDiffers
from app.store.database import Database
from app.store.sql.audit_log import note
from app.store.sql.tables import access_keys, access_state, access_usage

_SCOPES = {one.value: one for one in Scope}


# Called with a new key and its token before the key is stored. If it raises, or the process ends
# meanwhile, there is no such key: nobody would know its token.
KeepToken = Callable[[AccessKey, str], None]


def _keep_nowhere(_key: AccessKey, _token: str) -> None:
    """The caller gets the token."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key, and the digest that its token must have."""

    key: AccessKey
    digest: bytes


class AccessKeyStore:
    """Creates, lists and revokes keys. Each change raises the revision, which processes poll."""

    def __init__(self, database: Database, pepper: bytes) -> None:
        self._database = database
        self._pepper = pepper

    def revision(self) -> int:
        """Rises with each change of a key."""
        with self._database.reading() as connection:
            return int(connection.execute(select(access_state.c.revision)).scalar_one())

    def all(self) -> tuple[int, Mapping[str, StoredKey]]:
        """The revision, and every key by its id, also those that were revoked or have expired."""
        with self._database.reading() as connection:
            revision = int(connection.execute(select(access_state.c.revision)).scalar_one())
            rows = connection.execute(select(access_keys).order_by(access_keys.c.created_at))
            return revision, {row.key_id: StoredKey(_key(row), row.digest) for row in rows}

    def require_in_place(self) -> None:
        """Raise StoreUnavailable if the database's file was moved away or replaced: other processes
        would change keys in another file."""
        self._database.require_in_place()

    def check_pepper(self) -> None:
        """Raise AccessPepperDiffers if usable keys were created with another pepper."""
        with self._database.reading() as connection:
            self._require_own_pepper(connection, self._database.clock())

    def create_first(self, new: NewKey, keep: KeepToken) -> AccessKey | None:
        """Create a key, unless one was ever created: then return None."""
        now = self._database.clock()
        key, token = _made(new, now)
        with self._database.writing() as connection:
            _raise_revision(connection)
            if connection.execute(select(access_keys.c.key_id).limit(1)).first() is not None:
                return None
            self._insert(connection, key, token)
            note_key(connection, "key.created", key, **key.limits.members())
            keep(key, token)
        return key

    def create(self, new: NewKey, keep: KeepToken = _keep_nowhere) -> tuple[AccessKey, str]:
        """A new key and its token, which is stored nowhere. Raises AccessKeyExists if a usable key
        has that name, AccessPepperDiffers as `check_pepper`."""
        now = self._database.clock()
        key, token = _made(new, now)
        with self._database.writing() as connection:
            _raise_revision(connection)
            self._require_own_pepper(connection, now)
            same = select(access_keys).where(access_keys.c.name == new.name)
            if any(_key(row).usable(now) for row in connection.execute(same)):
                raise AccessKeyExists(
                    f"There is a usable key named '{new.name}'. Choose another name, rotate that "
                    "key, or revoke it first."
                )
            self._insert(connection, key, token)
            note_key(connection, "key.created", key, **key.limits.members())
            keep(key, token)
        return key, token

    def rotate(
        self, name_or_id: str, overlap: timedelta, keep: KeepToken = _keep_nowhere
    ) -> tuple[AccessKey, str]:
        """A new key like an old one, which expires after `overlap`. If the old one was to expire,
        the new one lasts as long from now. Raises AccessKeyNotFound, AccessPepperDiffers as
        `check_pepper`."""
        now = self._database.clock()
        key_id, token = new_token()
        with self._database.writing() as connection:
            _raise_revision(connection)
            self._require_own_pepper(connection, now)
            old = self._usable(connection, name_or_id, now)
            newest = self._newest(connection, old)
            ends = min(now + overlap, old.expires_at or now + overlap)
            connection.execute(
                update(access_keys).where(access_keys.c.key_id == old.key_id).values(
                    expires_at=ends
                )
            )  # fmt: skip
            key = replace(
                old,
                key_id=key_id,
                created_at=now,
                expires_at=_expiry_like(newest, now),
                last_used_at=None,
            )
            self._insert(connection, key, token)
            note_key(connection, "key.rotated", key, replaces=old.key_id, **key.limits.members())
            keep(key, token)
        return key, token

    def revoke(self, name_or_id: str) -> list[AccessKey]:
        """Revoke the key of that id, or every usable key of that name. Raises AccessKeyNotFound.

        Another process may accept the key for `registry.LEASE_S` more: wait as long before the
        revocation is acknowledged.
        """
        now = self._database.clock()
        with self._database.writing() as connection:
            _raise_revision(connection)
            found = self._all_usable(connection, name_or_id, now)
            ids = [key.key_id for key in found]
            connection.execute(
                update(access_keys).where(access_keys.c.key_id.in_(ids)).values(revoked_at=now)
            )
            for key in found:
                note_key(connection, "key.revoked", key)
        return [replace(key, revoked_at=now) for key in found]

    def limit(self, name_or_id: str, limits: KeyLimits) -> list[AccessKey]:
        """Replace the limits of every usable key of that name, or of the name that the key of that
        id has: keys of one name share their limits. Processes have read them after
        `registry.LEASE_S`. Raises AccessKeyNotFound."""
        now = self._database.clock()
        with self._database.writing() as connection:
            _raise_revision(connection)
            name = self._usable(connection, name_or_id, now).name
            named = self._keys_where(connection, access_keys.c.name == name)
            found = [key for key in named if key.usable(now)]
            ids = [key.key_id for key in found]
            connection.execute(
                update(access_keys)
                .where(access_keys.c.key_id.in_(ids))
                .values(limits=limits.members() or None)
            )
            for key in found:
                note_key(connection, "key.limited", key, **limits.members())
        return [replace(key, limits=limits) for key in found]

    def note_use(self, used: Mapping[str, datetime]) -> None:
        """Keep when keys were last used. The revision stays: this changes no decision."""
        with self._database.writing() as connection:
            for key_id, hour in used.items():
                connection.execute(
                    update(access_keys)
                    .where(access_keys.c.key_id == key_id)
                    .values(last_used_at=hour)
                )

    def _require_own_pepper(self, connection: Connection, now: datetime) -> None:
        others = access_keys.c.pepper != fingerprint(self._pepper)
        rows = connection.execute(select(access_keys).where(others))
        foreign = sorted(key.name for row in rows if (key := _key(row)).usable(now))
        if foreign:
            raise AccessPepperDiffers(
                f"The access keys {', '.join(foreign[:5])} were created with another pepper, so "
                "their tokens cannot be checked. Give this process the same LIKENESS_ACCESS_PEPPER "
                "or access-pepper file, or revoke these keys."
            )

    def _insert(self, connection: Connection, key: AccessKey, token: str) -> None:
        connection.execute(
            insert(access_keys).values(
                key_id=key.key_id,
                name=key.name,
                digest=digest_of(token, self._pepper),
                pepper=fingerprint(self._pepper),
                scopes=sorted(key.scopes),
                collections=None if key.collections is None else sorted(key.collections),
                created_at=key.created_at,
                expires_at=key.expires_at and key.expires_at.astimezone(UTC),
                limits=key.limits.members() or None,
            )
        )

    def _newest(self, connection: Connection, key: AccessKey) -> AccessKey:
        """The newest key of a usable key's name: itself, or the last one that replaced it. Only its
        expiry is the one that was chosen; that of an older one may be the end of its overlap."""
        return self._keys_where(connection, access_keys.c.name == key.name)[-1]

    def _usable(self, connection: Connection, name_or_id: str, now: datetime) -> AccessKey:
        return self._all_usable(connection, name_or_id, now)[-1]

    def _all_usable(
        self, connection: Connection, name_or_id: str, now: datetime
    ) -> list[AccessKey]:
        """The usable key of that id, or those of that name if no key ever had that id, the newest
        last. Raises AccessKeyNotFound."""
        keys: list[AccessKey] = []
        for column in (access_keys.c.key_id, access_keys.c.name):  # a name may be another key's id
            keys = keys or self._keys_where(connection, column == name_or_id)
        found = [key for key in keys if key.usable(now)]
        if not found:
            raise AccessKeyNotFound(
                f"There is no usable key with the id or name '{name_or_id}'; `likeness keys list` "
                "shows all keys."
            )
        return found

    def _keys_where(
        self, connection: Connection, condition: ColumnElement[bool]
    ) -> list[AccessKey]:
        query = select(access_keys).where(condition).order_by(access_keys.c.created_at)
        return [_key(row) for row in connection.execute(query)]


def note_key(connection: Connection, action: str, key: AccessKey, **details: Any) -> None:
    """Note a change of a key for the audit log."""
    limit = None if key.collections is None else sorted(key.collections)
    note(connection, action, key_id=key.key_id, name=key.name, scopes=sorted(key.scopes),
         collections=limit, **details)  # fmt: skip


def hour_of(moment: datetime) -> datetime:
    """The beginning of a moment's hour."""
    return moment.replace(minute=0, second=0, microsecond=0)


def _made(new: NewKey, now: datetime) -> tuple[AccessKey, str]:
    key_id, token = new_token()
    limit = None if new.collections is None else frozenset(new.collections)
    key = AccessKey(
        key_id, new.name, frozenset(new.scopes), limit, now, new.expires_at, limits=new.limits
    )
    return key, token


def _expiry_like(old: AccessKey, now: datetime) -> datetime | None:
    """When a key of now expires that lasts as long as an old one was to."""
    if old.expires_at is None:
        return None
    try:
        return now + (old.expires_at - old.created_at)
    except OverflowError:  # after the year 9999
        return old.expires_at


def _raise_revision(connection: Connection) -> None:
    """First in each change: it makes changes wait for each other."""
    connection.execute(update(access_state).values(revision=access_state.c.revision + 1))


def _key(row: Any) -> AccessKey:
    return AccessKey(
        row.key_id,
        row.name,
        # A newer version may have stored scopes that this one does not know.
        frozenset(_SCOPES[one] for one in row.scopes if one in _SCOPES),
        None if row.collections is None else frozenset(row.collections),
        _utc(row.created_at),
        _utc(row.expires_at),
        _utc(row.revoked_at),
        _utc(row.last_used_at),
        stored_limits(row.limits),
    )


def _utc(value: datetime | None) -> Any:
    """SQLite gives times without their zone, which is UTC."""
    return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


KEPT_DAYS = 31


class UsageStore:
    """Reserves photos of a daily quota. A reservation counts as used until it is released."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def reserve(
        self, name: str, day: date, needed: int, wanted: int, quota: int
    ) -> tuple[int, int]:
        """Reserve up to `wanted` photos, or none if fewer than `needed` are left.

        Returns how many were reserved, and how many are left for further reservations.
        """
        row = (access_usage.c.name == name) & (access_usage.c.day == day)
        with self._database.writing() as connection:
            # First, without a change: it makes reservations wait for each other.
            connection.execute(update(access_state).values(revision=access_state.c.revision))
            used = connection.execute(select(access_usage.c.photos).where(row)).scalar()
            if used is None:
                _begin_day(connection, name, day)
            left = max(0, quota - int(used or 0))
            if left < needed:
                return 0, left
            reserved = min(max(needed, wanted), left)
            connection.execute(
                update(access_usage).where(row).values(photos=access_usage.c.photos + reserved)
            )
        return reserved, left - reserved

    def release(self, name: str, day: date, photos: int) -> None:
        """Give back what was reserved and not used."""
        row = (access_usage.c.name == name) & (access_usage.c.day == day)
        with self._database.writing() as connection:
            connection.execute(
                update(access_usage).where(row).values(photos=access_usage.c.photos - photos)
            )


def _begin_day(connection: Connection, name: str, day: date) -> None:
    oldest = day - timedelta(days=KEPT_DAYS)
    connection.execute(delete(access_usage).where(access_usage.c.day < oldest))
    connection.execute(insert(access_usage).values(name=name, day=day, photos=0))
