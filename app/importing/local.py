"""Rows into the database of this machine: photos analysed side by side, decided in their order.

Order matters where a row is judged by those before it: so an import that was cut off and run again
ends in the gallery that one run would have made.
"""

import json
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from app.decision.calibrations import policy_of
from app.decision.policy import FaceSelection
from app.decision.rules import Ask, identification_rule
from app.errors import LikenessError, StoreFull, StoreUnavailable
from app.gallery.ports import CollectionRecord, NewTemplate, PersonTemplate
from app.importing.journal import Journal
from app.importing.outcomes import Outcome, Result, Tell
from app.importing.rows import Row
from app.services import Services, check_person_id, content_digest

# Photos read ahead of each worker: enough to keep it busy, few enough to stay small in memory.
AHEAD = 4
ROWS_A_TRANSACTION = 1_000
SECONDS_A_TRANSACTION = 1.0


class OnConflict(StrEnum):
    """What to do with a face that resembles another person more than its own."""

    OFF = "off"
    REPORT = "report"
    SKIP = "skip"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """`near_duplicate`: a face this similar to one that its person has already is skipped.
    `on_conflict` None: photos are checked and reported, embeddings are not checked."""

    face: FaceSelection = FaceSelection.ONLY
    near_duplicate: float | None = None
    on_conflict: OnConflict | None = None
    dry_run: bool = False


class StoppedByConflict(LikenessError):
    """The import was told to stop at a face that resembles another person more than its own."""

    code, status, title = "conflict", 422, "A face looks like another person"


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A row with its template, or with what already became of it."""

    row: Row
    template: NewTemplate | None = None
    outcome: Outcome | None = None
    key: bytes | None = None
    conflict: tuple[str, float] | None = None


class LocalImport:
    """Imports rows into one collection."""

    def __init__(
        self,
        services: Services,
        record: CollectionRecord,
        options: ImportOptions,
        workers: int | None = None,
    ) -> None:
        """`workers`: photos at work at a time; as many as the service has without."""
        self._workers = workers or services.scheduler.workers
        self._services = services
        self._record = record
        self._options = options
        self._policy = policy_of(record)
        decided_by = [
            services.gallery.store.identity(), record.name, record.embedding_space,
            self._policy.enroll_gate.model_dump(mode="json"), options.face.value,
            options.near_duplicate, options.on_conflict,
        ]  # fmt: skip
        path = services.settings.data_dir / "imports.db"
        self._journal = Journal(path, json.dumps(decided_by, sort_keys=True))
        self._batch: list[_Prepared] = []
        self._since = time.monotonic()

    def run(self, rows: Iterator[Row], tell: Tell) -> None:
        """Import all rows; each outcome is told when it is on disk.

        Raises StoreFull, StoreUnavailable, ImportSourceError and StoppedByConflict; what was told
        before stays done.
        """
        under_way: deque[_Prepared | Future[_Prepared]] = deque()
        workers = self._workers
        with ThreadPoolExecutor(workers, thread_name_prefix="import") as threads:
            try:
                for row in rows:
                    under_way.append(self._start(row, threads))
                    # Those in front that are ready; wait only when enough is under way.
                    while under_way and (
                        len(under_way) >= workers * AHEAD or _is_ready(under_way[0])
                    ):
                        self._take(under_way.popleft(), tell)
                while under_way:
                    self._take(under_way.popleft(), tell)
                self._flush(tell)
            finally:
                threads.shutdown(cancel_futures=True)
                self._journal.close()

    def _start(self, row: Row, threads: ThreadPoolExecutor) -> "_Prepared | Future[_Prepared]":
        """Embeddings are made into templates here, photos on the threads."""
        if row.read is not None:
            data, problem = _read(row)
            if data is not None:
                return self._start_photo(row, data, threads)
            return _Prepared(row, outcome=_rejected(row, problem))
        try:
            if row.problem is not None:
                raise row.problem
            check_person_id(row.person_id)
            assert row.embedding is not None, "a row has a photo, an embedding or a problem"
            made = self._services.template_from_embedding(row.embedding)
            crop = row.crop() if row.crop is not None and self._policy.keep_crops else None
        except LikenessError as error:
            return _Prepared(row, outcome=_rejected(row, error))
        except OSError as error:
            return _Prepared(row, outcome=_rejected(row, _unreadable(error)))
        template = NewTemplate(
            made.embedding,
            row.content_digest or made.content_digest,
            dict(row.quality),
            crop,
        )
        return _Prepared(row, template)

    def _start_photo(
        self, row: Row, data: bytes, threads: ThreadPoolExecutor
    ) -> "_Prepared | Future[_Prepared]":
        digest = content_digest(data)
        key = self._journal.key(row.person_id, digest)
        before = self._journal.find(key)
        if before is not None:
            result, reason, detail = before
            return _Prepared(
                row, outcome=Outcome(row.place, row.person_id, Result(result), reason, detail)
            )
        return threads.submit(self._analyse, row, data, digest, key)

    def _analyse(self, row: Row, data: bytes, digest: str, key: bytes) -> _Prepared:
        services = self._services
        try:
            check_person_id(row.person_id)
            if services.gallery.store.knows(self._record.name, row.person_id, digest):
                return _Prepared(row, outcome=_already(row))
            _, template = services.template_from_photo(data, self._options.face, self._policy)
        except (StoreFull, StoreUnavailable):
            raise
        except LikenessError as error:
            return _Prepared(row, outcome=_rejected(row, error), key=key)
        return _Prepared(row, template, key=key)

    def _take(self, ready: "_Prepared | Future[_Prepared]", tell: Tell) -> None:
        """Decide about the next row in order."""
        prepared = ready.result() if isinstance(ready, Future) else ready
        if prepared.template is not None and self._checked(prepared.row):
            # It is judged by all before it, so they must be in the index.
            self._flush(tell)
            prepared = self._check(prepared, prepared.template)
        if prepared.outcome is not None:
            self._note(prepared)
        self._batch.append(prepared)
        old = time.monotonic() - self._since > SECONDS_A_TRANSACTION
        if len(self._batch) >= ROWS_A_TRANSACTION or old:
            self._flush(tell)

    def _checked(self, row: Row) -> bool:
        on_conflict = self._options.on_conflict
        if on_conflict is None:
            on_conflict = OnConflict.REPORT if row.read is not None else OnConflict.OFF
        return on_conflict is not OnConflict.OFF or self._options.near_duplicate is not None

    def _check(self, prepared: _Prepared, template: NewTemplate) -> _Prepared:
        """Whether the person has nearly this face, or another person has one that is nearer."""
        gallery, row = self._services.gallery, prepared.row
        # Only who searches needs the index, which upkeep keeps compressed.
        self._services.upkeep.start()
        found = gallery.identify(self._record.name, template.embedding[None], 2)
        nearest = found.rows[0]
        if not nearest:
            return prepared
        first, similarity = nearest[0].face.person_id, nearest[0].similarity
        limit = self._options.near_duplicate
        if limit is not None and first == row.person_id and similarity >= limit:
            return _Prepared(
                row,
                outcome=Outcome(
                    row.place, row.person_id, Result.SKIPPED, "near_duplicate",
                    "The person has nearly this face already.", similarity=similarity,
                ),
                key=prepared.key,
            )  # fmt: skip
        if first == row.person_id or self._options.on_conflict is OnConflict.OFF:
            return prepared
        grounds = self._services.calibrations.grounds(self._record)
        rule = identification_rule(Ask(), self._policy, grounds, found.searched)
        if similarity < rule.threshold:
            return prepared
        return self._conflict(prepared, first, similarity)

    def _conflict(self, prepared: _Prepared, other: str, similarity: float) -> _Prepared:
        row = prepared.row
        detail = f"The face resembles {other} more than anybody else."
        if self._options.on_conflict is OnConflict.STOP:
            raise StoppedByConflict(f"{row.place} of {row.person_id}: {detail}")
        if self._options.on_conflict is OnConflict.SKIP:
            outcome = Outcome(
                row.place, row.person_id, Result.REJECTED, "conflict", detail,
                conflict_with=other, similarity=similarity,
            )  # fmt: skip
            # Not noted: the person whom it resembles may be gone the next time.
            return _Prepared(row, outcome=outcome)
        return _Prepared(row, prepared.template, key=prepared.key, conflict=(other, similarity))

    def _note(self, prepared: _Prepared) -> None:
        if prepared.key is not None and prepared.outcome is not None:
            outcome = prepared.outcome
            self._journal.note(prepared.key, outcome.result.value, outcome.reason, outcome.detail)

    def _flush(self, tell: Tell) -> None:
        """Store what is waiting, then tell of it, in the order of the rows."""
        waiting, self._batch = self._batch, []
        new = [
            PersonTemplate(one.row.person_id, one.row.metadata, one.template)
            for one in waiting
            if one.template is not None
        ]
        face_ids = iter(self._store(new))
        self._journal.keep()
        for one in waiting:
            tell(one.outcome or _stored(one, next(face_ids), dry_run=self._options.dry_run))
        self._since = time.monotonic()

    def _store(self, new: list[PersonTemplate]) -> list[str | None]:
        if not new or self._options.dry_run:
            return ["" for _ in new]
        return self._services.gallery.enroll_many(self._record.name, new)


def _is_ready(one: "_Prepared | Future[_Prepared]") -> bool:
    return not isinstance(one, Future) or one.done()


def _read(row: Row) -> tuple[bytes | None, LikenessError | None]:
    """The photo's bytes, or why there are none."""
    assert row.read is not None, "only photos are read"
    try:
        return row.read(), None
    except LikenessError as error:
        return None, error
    except OSError as error:
        return None, _unreadable(error)


class UnreadableFile(LikenessError):
    """A photo's file cannot be read."""

    code, status, title = "unreadable_file", 422, "The file cannot be read"


def _unreadable(error: OSError) -> UnreadableFile:
    return UnreadableFile(f"The file cannot be read: {error.strerror}.")


def _rejected(row: Row, error: LikenessError | None) -> Outcome:
    assert error is not None, "a row that cannot be used has a reason"
    return Outcome(row.place, row.person_id, Result.REJECTED, error.code, error.detail)


def _already(row: Row) -> Outcome:
    return Outcome(row.place, row.person_id, Result.SKIPPED, "already_enrolled")


def _stored(one: _Prepared, face_id: str | None, *, dry_run: bool) -> Outcome:
    if face_id is None:
        return _already(one.row)
    other, similarity = one.conflict or (None, None)
    reason = "conflict" if other else ""
    detail = f"The face resembles {other} more than anybody else." if other else ""
    return Outcome(
        one.row.place, one.row.person_id, Result.ENROLLED, reason, detail,
        None if dry_run else face_id, other, similarity,
    )  # fmt: skip
