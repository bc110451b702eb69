"""Processes that erase persons by the policy and write refused calls are killed: the audit log
stays whole, each person is there or has an entry, and the next process finishes."""

import time
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select, update

from app.access.refused import CallLog, CallOutcome, RefusedCall, RefusedCalls
from app.gallery import retention
from app.gallery.retention import RetentionTask
from app.store.audit_verification import verify_audit
from app.store.backends import create_engine
from app.store.records import NewTemplate, PersonTemplate
from app.store.sql.tables import audit_entries, metadata_terms, persons, templates
from app.store.store import Store
from tests.chaos.gallery_process import START, open_gallery, vector_of
from tests.waiting import until

pytestmark = pytest.mark.chaos
PERSONS, CYCLES = 900, 8
CONSENT = {"consent": {"reference": "form 17"}}


def erase(url: str, folder: Path) -> None:
    """Erase all who are due, a few at a time, beside refused calls."""
    retention.MOST_AT_ONCE = 5
    gallery = open_gallery(url, folder)
    refused = RefusedCalls(CallLog(gallery.store.database))
    task = RetentionTask(gallery, lambda: None, lambda *_: None)
    number = 0
    while (
        gallery.store.collections.count(gallery.store.collections.get("staff")).persons
        > PERSONS // 3
    ):
        number += 1
        call = RefusedCall(f"key:{number}", CallOutcome.DENIED, "GET /v1/audit", "forbidden")
        refused.note(call, (None, None))
        refused.round()
        task.round()


def filled(url: str, folder: Path) -> None:
    """A collection that needs consents; those of two thirds of its persons have ended."""
    gallery = open_gallery(url, folder)
    gallery.create_collection("staff", {}, {"consent_required": True})
    names = [f"p{number}" for number in range(PERSONS)]
    rows = [PersonTemplate(one, CONSENT, NewTemplate(vector_of(one, 0), "0")) for one in names]
    gallery.enroll_many("staff", rows)
    ended = update(persons).where(persons.c.id % 3 != 0)
    with gallery.store.database.writing() as connection:
        connection.execute(ended.values(consent_until=datetime(2020, 1, 1, tzinfo=UTC)))
    gallery.close()


def left(url: str) -> int:
    """How many persons are left, after the checks that hold at any moment."""
    engine = create_engine(url)
    store = Store(engine)
    assert verify_audit(store.audit.everything()).problem is None
    with store.database.reading() as connection:
        found, held, indexed, deleted = (
            connection.execute(query).scalar_one()
            for query in (
                select(func.count()).select_from(persons),
                select(func.count()).select_from(templates),
                select(func.count(metadata_terms.c.person.distinct())),
                select(func.count()).where(audit_entries.c.action == "person.deleted"),
            )
        )
    engine.dispose()
    assert found == held == indexed == PERSONS - deleted
    return int(found)


def kill_at_work(process: BaseProcess, url: str, before: int, seconds: float) -> None:
    """Kill a process some time after it has begun to erase."""
    until(lambda: left(url) < before or not process.is_alive())
    time.sleep(seconds)
    process.kill()


def test_killed_again_and_again(tmp_path: Path) -> None:
    url, random = f"sqlite:///{tmp_path / 'likeness.db'}", np.random.default_rng(5)
    filled(url, tmp_path / "index")
    before = left(url)
    for cycle in range(CYCLES):
        process = START.Process(target=erase, args=(url, tmp_path / "index"), daemon=True)
        process.start()
        if cycle < CYCLES - 1:
            kill_at_work(process, url, before, random.uniform(0, 0.05))
        process.join()
        before = left(url)
        if before == PERSONS // 3:
            break
    assert before == PERSONS // 3
