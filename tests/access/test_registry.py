"""Access keys: from creation to the last process that accepts them."""

import logging
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import update

from app.access.keys import (
    PEPPER_FILE,
    AccessKey,
    KeyLimits,
    NewKey,
    Scope,
    digest_of,
    id_of,
    new_token,
    read_pepper,
)
from app.access.registry import LEASE_S, READINGS_APART_S, AccessRegistry
from app.access.store import AccessKeyStore
from app.errors import (
    AccessKeyError,
    AccessKeyExists,
    AccessKeyNotFound,
    AccessPepperDiffers,
    StoreUnavailable,
)
from app.settings import Settings
from app.store.backends import create_engine
from app.store.database import Database
from app.store.schema import migrate
from app.store.sql.tables import access_keys
from app.telemetry.logs import LOGGER_NAME
from tests.access.conftest import PEPPER, Clock
from tests.waiting import PATIENCE_S

ENTRANCE = NewKey("entrance-1", [Scope.IDENTIFY], ["staff"])


def test_a_key_is_known_by_its_token(store: AccessKeyStore, registry: AccessRegistry) -> None:
    assert [registry.enabled] == [False]
    key, token = store.create(ENTRANCE)
    registry.refresh()
    assert registry.enabled
    assert registry.key_of(token) == key
    assert key.scopes == {Scope.IDENTIFY}
    assert [key.sees(name) for name in ("staff", "guests")] == [True, False]


@pytest.mark.parametrize("change", [lambda t: t[:-1] + ("A" if t[-1] != "A" else "B"),
                                    lambda t: t.swapcase(), lambda t: t[:20], lambda t: f"{t} ",
                                    lambda t: f"lk_{'a' * 12}_{t[16:]}", lambda _: ""])  # fmt: skip
def test_any_other_text_is_no_token(
    store: AccessKeyStore, registry: AccessRegistry, change: object
) -> None:
    _, token = store.create(ENTRANCE)
    registry.refresh()
    assert callable(change)
    assert registry.key_of(change(token)) is None


def test_tokens_are_random_and_not_stored(tmp_path: Path, clock: Clock) -> None:
    assert len({new_token()[1] for _ in range(100)}) == 100
    key_id, token = new_token()
    assert id_of(token) == key_id
    assert digest_of(token, PEPPER) != digest_of(token, bytes(32))


def test_the_database_holds_no_token(store: AccessKeyStore, tmp_path: Path) -> None:
    _, token = store.create(ENTRANCE)
    if not (tmp_path / "likeness.db").exists():
        return  # PostgreSQL: the same statements
    with sqlite3.connect(tmp_path / "likeness.db") as connection:
        content = "\n".join(connection.iterdump())
    assert "entrance-1" in content
    assert token[16:] not in content


def test_two_usable_keys_cannot_have_one_name(store: AccessKeyStore) -> None:
    store.create(ENTRANCE)
    with pytest.raises(AccessKeyExists, match="entrance-1"):
        store.create(ENTRANCE)
    store.revoke("entrance-1")
    store.create(ENTRANCE)


def test_a_revoked_key_is_accepted_no_longer_than_the_lease(
    store: AccessKeyStore, registry: AccessRegistry, clock: Clock
) -> None:
    """In a process that does not read the keys meanwhile: it must read before it uses any."""
    _, token = store.create(ENTRANCE)
    registry.refresh()
    (revoked,) = store.revoke("entrance-1")
    assert revoked.revoked_at == clock.now
    clock.later(LEASE_S)
    assert [registry.fresh] == [False]
    registry.refresh()
    assert registry.fresh
    assert registry.key_of(token) is None
    assert registry.enabled, "a revoked key must not make the service open to all"


def test_the_lease_begins_before_the_read(
    store: AccessKeyStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revocation may be committed after the read of a slow database and before it returns."""
    registry = AccessRegistry(store, PEPPER, lambda: clock.seconds, lambda: clock.now)

    def slow() -> int:
        revision = AccessKeyStore.revision(store)
        clock.later(LEASE_S)
        return revision

    monkeypatch.setattr(store, "revision", slow)
    registry.refresh()
    assert not registry.fresh


def test_expiry_needs_no_read(
    store: AccessKeyStore, registry: AccessRegistry, clock: Clock
) -> None:
    ends = clock.now + timedelta(seconds=1)
    key, token = store.create(replace_expiry(ENTRANCE, ends))
    registry.refresh()
    assert registry.key_of(token) == key
    clock.later(1)
    assert registry.key_of(token) is None
    assert not registry.usable(key)


def replace_expiry(new: NewKey, ends: object) -> NewKey:
    return replace(new, expires_at=ends)  # type: ignore[arg-type]


def test_rotation_overlaps(store: AccessKeyStore, registry: AccessRegistry, clock: Clock) -> None:
    old, before = store.create(ENTRANCE)
    new, after = store.rotate("entrance-1", timedelta(hours=1))
    registry.refresh()
    assert (new.name, new.scopes, new.collections) == (old.name, old.scopes, old.collections)
    assert registry.key_of(before) is not None
    assert registry.key_of(after) is not None
    clock.later(3600)
    assert registry.key_of(before) is None
    assert registry.key_of(after) is not None
    with pytest.raises(AccessKeyNotFound, match="nobody"):
        store.rotate("nobody", timedelta(0))


def test_an_id_names_one_key_alone(store: AccessKeyStore) -> None:
    """Even if another key has that id as its name."""
    one, _ = store.create(NewKey("entrance", [Scope.IDENTIFY]))
    other, _ = store.create(NewKey(one.key_id, [Scope.IDENTIFY]))
    assert [key.key_id for key in store.limit(other.key_id, KeyLimits())] == [other.key_id]
    assert [key.key_id for key in store.revoke(one.key_id)] == [one.key_id]
    with pytest.raises(AccessKeyNotFound):  # the same again
        store.revoke(one.key_id)
    assert [key.key_id for key in store.revoke(other.key_id)] == [other.key_id]


def test_revoking_a_name_revokes_what_rotation_left(store: AccessKeyStore) -> None:
    store.create(ENTRANCE)
    store.rotate("entrance-1", timedelta(hours=1))
    assert len(store.revoke("entrance-1")) == 2
    with pytest.raises(AccessKeyNotFound, match="no usable key"):
        store.revoke("entrance-1")


def test_use_is_kept_by_the_hour(
    store: AccessKeyStore, registry: AccessRegistry, clock: Clock
) -> None:
    key, token = store.create(ENTRANCE)
    before = store.revision()
    registry.refresh()
    registry.key_of(token)
    registry.store_uses()
    registry.key_of(token)
    assert not registry._used, "it is stored once an hour"
    _, keys = store.all()
    assert keys[key.key_id].key.last_used_at == clock.now.replace(minute=0)
    assert store.revision() == before


def test_keys_of_another_pepper_are_named(store: AccessKeyStore) -> None:
    store.create(ENTRANCE)
    other = AccessKeyStore(Database(store._database.engine), bytes(32))
    for use in (other.check_pepper, lambda: other.create(replace(ENTRANCE, name="gate")),
                lambda: other.rotate("entrance-1", timedelta(0))):  # fmt: skip
        with pytest.raises(AccessPepperDiffers, match=r"entrance-1.*another pepper"):
            use()
    other.revoke("entrance-1")
    other.check_pepper()


def test_expiry_is_one_moment_in_every_time_zone(store: AccessKeyStore, clock: Clock) -> None:
    ends = (clock.now + timedelta(hours=1)).astimezone(timezone(timedelta(hours=14)))
    key, _ = store.create(replace_expiry(ENTRANCE, ends))
    assert store.all()[1][key.key_id].key.expires_at == ends


def test_a_rotated_key_lasts_as_long_as_the_old_one_was_to(
    store: AccessKeyStore, clock: Clock
) -> None:
    store.create(replace_expiry(ENTRANCE, clock.now + timedelta(days=90)))
    clock.later(89 * 86_400)
    key, _ = store.rotate("entrance-1", timedelta(hours=1))
    assert key.expires_at == clock.now + timedelta(days=90)
    store.create(NewKey("far", [Scope.DETECT], None, datetime.max.replace(tzinfo=UTC)))
    assert store.rotate("far", timedelta(0))[0].expires_at is not None


def test_a_key_that_is_rotated_twice_by_its_id_gives_no_shorter_life(
    store: AccessKeyStore, clock: Clock
) -> None:
    """As a client does whose first answer was lost."""
    for name, lifetime in (("endless", None), ("a-year", timedelta(days=365))):
        ends = None if lifetime is None else clock.now + lifetime
        first, _ = store.create(NewKey(name, [Scope.DETECT], None, ends))
        for _ in range(3):
            clock.later(3_600)
            again, _ = store.rotate(first.key_id, timedelta(days=1))
            assert again.expires_at == (None if lifetime is None else clock.now + lifetime)
        store.revoke(again.key_id)
        assert store.rotate(first.key_id, timedelta(0))[0].expires_at == again.expires_at


def test_a_scope_of_a_newer_version_is_not_known(
    store: AccessKeyStore, registry: AccessRegistry
) -> None:
    _, token = store.create(ENTRANCE)
    with store._database.writing() as connection:
        connection.execute(update(access_keys).values(scopes=["identify", "time travel"]))
    registry._read = replace(registry._read, revision=-1)
    registry.refresh()
    key = registry.key_of(token)
    assert key is not None
    assert key.scopes == {Scope.IDENTIFY}


def full(_key: AccessKey, _token: str) -> None:
    raise OSError("the disk is full")


def test_no_key_is_created_or_replaced_whose_token_cannot_be_kept(store: AccessKeyStore) -> None:
    with pytest.raises(OSError, match="full"):
        store.create(ENTRANCE, full)
    assert not store.all()[1]
    old, _ = store.create(ENTRANCE)
    with pytest.raises(OSError, match="full"):
        store.rotate("entrance-1", timedelta(0), full)
    (left,) = store.all()[1].values()
    assert left.key == old


class TestFirst:
    def test_is_created_once_by_simultaneous_starts(self, store: AccessKeyStore) -> None:
        kept: list[str] = []

        def keep(_key: AccessKey, token: str) -> None:
            kept.append(token)

        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda _: store.create_first(ENTRANCE, keep), range(4)))
        assert [key.name for key in made if key is not None] == ["entrance-1"]
        (stored,) = store.all()[1]
        assert [id_of(token) for token in kept] == [stored]

    def test_is_not_created_if_its_token_cannot_be_kept(self, store: AccessKeyStore) -> None:
        """So that the next start tries again. A process that is killed there leaves the same."""

        with pytest.raises(OSError, match="full"):
            store.create_first(ENTRANCE, full)
        assert not store.all()[1]

    def test_is_never_created_again(self, store: AccessKeyStore) -> None:
        store.create(ENTRANCE)
        store.revoke("entrance-1")
        assert store.create_first(ENTRANCE, pytest.fail) is None


def test_keys_of_a_file_that_was_moved_away_are_not_used(tmp_path: Path) -> None:
    """A revocation would be written to the new file."""
    file = tmp_path / "likeness.db"
    engine = create_engine(f"sqlite:///{file}")
    migrate(engine)
    store = AccessKeyStore(Database(engine), PEPPER)
    registry = AccessRegistry(store, PEPPER)
    store.create(ENTRANCE)
    registry.refresh()
    file.rename(tmp_path / "old.db")
    began = registry._read.began
    with pytest.raises(StoreUnavailable, match="moved away"):
        registry.refresh()
    assert registry._read.began == began
    engine.dispose()


def test_a_key_of_another_pepper_is_named_in_the_log(
    store: AccessKeyStore,
    registry: AccessRegistry,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when the command line lacks the LIKENESS_ACCESS_PEPPER of the service."""
    monkeypatch.setattr(logging.getLogger(LOGGER_NAME), "propagate", True)
    _, token = AccessKeyStore(Database(store._database.engine), bytes(32)).create(ENTRANCE)
    registry.refresh()
    assert registry.key_of(token) is None
    assert "created with another pepper" in caplog.text


def test_many_wait_for_one_reading(
    store: AccessKeyStore, registry: AccessRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that hangs holds one thread, however many requests wait."""
    answers, asked = threading.Event(), threading.Event()

    def hanging() -> int:
        asked.set()
        assert answers.wait(PATIENCE_S)
        return 0

    monkeypatch.setattr(store, "revision", hanging)
    registry.start()
    first = registry.renewal()
    assert asked.wait(PATIENCE_S)
    waiting = {registry.renewal() for _ in range(100)}
    assert len(waiting - {first}) == 1
    answers.set()
    for renewal in waiting:
        renewal.result(PATIENCE_S)
    registry.close()


def test_requests_do_not_make_it_read_without_a_pause(
    store: AccessKeyStore, registry: AccessRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request with an unknown id calls for a reading, and needs no key for that."""
    began = list[float]()
    revision = store.revision

    def noted() -> int:
        began.append(time.monotonic())
        return revision()

    monkeypatch.setattr(store, "revision", noted)
    registry.start()
    for _ in range(3):
        assert registry.renewal().result(PATIENCE_S)
    registry.close()
    assert all(later - earlier >= READINGS_APART_S for earlier, later in pairwise(began))


class TestPepper:
    def test_is_made_once_and_private(self, tmp_path: Path) -> None:
        settings = Settings(data_dir=tmp_path / "data")
        assert read_pepper(settings) == read_pepper(settings)
        assert (tmp_path / "data" / PEPPER_FILE).stat().st_mode & 0o777 == 0o600

    @pytest.mark.parametrize("text", ["", "short", "A" * 44, "ä" * 44])
    def test_must_be_32_bytes(self, tmp_path: Path, text: str) -> None:
        (tmp_path / PEPPER_FILE).write_text(text, encoding="utf-8")
        with pytest.raises(AccessKeyError, match=PEPPER_FILE):
            read_pepper(Settings(data_dir=tmp_path))
