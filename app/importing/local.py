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

from app.decision.calibrations import policy_of
from app.decision.rules import Ask, identification_rule
from app.errors import LikenessError, PersonExists
from app.gallery.ports import CollectionRecord, NewTemplate, PersonTemplate
from app.importing.journal import Journal
from app.importing.options import ImportOptions, ImportStopped, OnConflict, OnError
from app.importing.outcomes import Outcome, Result, Tell
from app.importing.rows import Row, content_of
from app.services import Services, check_person_id, content_digest

# Photos read ahead of each worker: enough to keep it busy, few enough to stay small in memory.
AHEAD = 4
ROWS_A_TRANSACTION = 1_000
SECONDS_A_TRANSACTION = 1.0
# A reason: the face resembles another person more than its own.
CONFLICT = "conflict"
SERVER_ERROR = 500


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A row with its template, or with what already became of it; neither where it is a person
    without a face. `key` is what the journal knows it by."""

    row: Row
    template: NewTemplate | None = None
    outcome: Outcome | None = None
    key: bytes | None = None
    conflict: tuple[str, float] | None = None


class LocalImport:
    """Imports rows into one collection."""

    _journal: Journal  # open while it runs

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
            self._policy.model_dump(mode="json"), record.calibration_id, options.face.value,
            options.near_duplicate, options.on_conflict,
        ]  # fmt: skip
        self._decided_by = json.dumps(decided_by, sort_keys=True)
        self._batch: list[_Prepared] = []
        self._since = time.monotonic()

    def run(self, rows: Iterator[Row], tell: Tell) -> None:
        """Import all rows; each outcome is told when it is on disk.

        Raises StoreFull, StoreUnavailable, ImportSourceError and ImportStopped; what was told
        before stays done.
        """
        path = self._services.settings.data_dir / "imports.db"
        self._journal = Journal(path, self._decided_by)
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
        try:
            if row.read is not None:
                return self._start_photo(row, content_of(row.read), threads)
            if row.problem is not None:
                raise row.problem
            check_person_id(row.person_id)
            if row.without_face:
                return _Prepared(row)
            assert row.embedding is not None, "a row has a photo, an embedding or a problem"
            made = self._services.template_from_embedding(row.embedding)
            crop = content_of(row.crop) if row.crop and self._policy.keep_crops else None
        except LikenessError as error:
            return _Prepared(row, outcome=_rejected(row, error))
        template = NewTemplate(
            made.embedding,
            row.content_digest or made.content_digest,
            dict(row.quality),
            crop,
        )
        if not self._checked(row):
            return _Prepared(row, template)
        key = self._journal.key(row.person_id, template.content_digest)
        return self._refused_before(row, key) or _Prepared(row, template, key=key)

    def _start_photo(
        self, row: Row, data: bytes, threads: ThreadPoolExecutor
    ) -> "_Prepared | Future[_Prepared]":
        digest = content_digest(data)
        key = self._journal.key(row.person_id, digest)
        before = self._refused_before(row, key)
        return before or threads.submit(self._analyse, row, data, digest, key)

    def _refused_before(self, row: Row, key: bytes) -> _Prepared | None:
        before = None if self._options.retry_refused else self._journal.find(key)
        if before is None:
            return None
        result, reason, detail = before
        detail = detail or "As an earlier run found; --retry-refused looks again."
        return _Prepared(
            row, outcome=Outcome(row.place, row.person_id, Result(result), reason, detail)
        )

    def _analyse(self, row: Row, data: bytes, digest: str, key: bytes) -> _Prepared:
        services = self._services
        try:
            check_person_id(row.person_id)
            if services.gallery.store.knows(self._record.name, row.person_id, digest):
                return _Prepared(row, outcome=_already(row))
            _, template = services.template_from_photo(data, self._options.face, self._policy)
        except LikenessError as error:
            if error.status >= SERVER_ERROR:  # ours, not the photo's: another time it goes well
                raise
            return _Prepared(row, outcome=_rejected(row, error), key=key)
        return _Prepared(row, template, key=key)

    def _take(self, ready: "_Prepared | Future[_Prepared]", tell: Tell) -> None:
        """Decide about the next row in order."""
        prepared = ready.result() if isinstance(ready, Future) else ready
        if prepared.template is not None and self._checked(prepared.row):
            # It is judged by all before it, so they must be in the index.
            self._flush(tell)
            prepared = self._check(prepared, prepared.template)
        if prepared.row.without_face and prepared.outcome is None:
            self._flush(tell)
            prepared = _Prepared(prepared.row, outcome=self._create(prepared.row))
        if prepared.outcome is not None:
            self._note(prepared)
        self._batch.append(prepared)
        if prepared.outcome is not None and self._stops_at(prepared.outcome):
            self._flush(tell)
            outcome = prepared.outcome
            raise ImportStopped(f"{outcome.place}: {outcome.detail or outcome.reason}")
        old = time.monotonic() - self._since > SECONDS_A_TRANSACTION
        if len(self._batch) >= ROWS_A_TRANSACTION or old:
            self._flush(tell)

    def _stops_at(self, outcome: Outcome) -> bool:
        if outcome.result is not Result.REJECTED:
            return False
        conflict = outcome.reason == CONFLICT and self._options.on_conflict is OnConflict.STOP
        return conflict or self._options.on_error is OnError.STOP

    def _create(self, row: Row) -> Outcome:
        """A person who has no face."""
        store, name = self._services.gallery.store, self._record.name
        if self._options.dry_run:
            return Outcome(row.place, row.person_id, Result.ENROLLED)
        try:
            store.create_person(name, row.person_id, row.metadata or {})
        except PersonExists:
            if row.metadata is not None:
                store.update_person(name, row.person_id, row.metadata)
            return _already(row)
        return Outcome(row.place, row.person_id, Result.ENROLLED)

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
        if self._options.on_conflict in (OnConflict.SKIP, OnConflict.STOP):
            outcome = Outcome(
                row.place, row.person_id, Result.REJECTED, CONFLICT, _resembles(other),
                conflict_with=other, similarity=similarity,
            )  # fmt: skip
            # Noted only where the import goes on: what follows could change the answer next time.
            goes_on = self._options.on_conflict is OnConflict.SKIP
            return _Prepared(row, outcome=outcome, key=prepared.key if goes_on else None)
        return _Prepared(row, prepared.template, key=prepared.key, conflict=(other, similarity))

    def _note(self, prepared: _Prepared) -> None:
        outcome = prepared.outcome
        # A dry run judges by a gallery that lacks the rows before it.
        if prepared.key is None or outcome is None or self._options.dry_run:
            return
        # The journal names nobody.
        detail = "" if outcome.reason == CONFLICT else outcome.detail
        self._journal.note(prepared.key, outcome.result.value, outcome.reason, detail)

    def _flush(self, tell: Tell) -> None:
        """Store what is waiting, then tell of it, in the order of the rows."""
        waiting, self._batch = self._batch, []
        new = [
            PersonTemplate(one.row.person_id, one.row.metadata, one.template, one.row.face_id)
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


def _rejected(row: Row, error: LikenessError) -> Outcome:
    return Outcome(row.place, row.person_id, Result.REJECTED, error.code, error.detail)


def _resembles(other: str) -> str:
    return f"The face resembles {other} more than anybody else."


def _already(row: Row) -> Outcome:
    return Outcome(row.place, row.person_id, Result.SKIPPED, "already_enrolled")


def _stored(one: _Prepared, face_id: str | None, *, dry_run: bool) -> Outcome:
    if face_id is None:
        return _already(one.row)
    other, similarity = one.conflict or (None, None)
    reason, detail = (CONFLICT, _resembles(other)) if other else ("", "")
    return Outcome(
        one.row.place, one.row.person_id, Result.ENROLLED, reason, detail,
        None if dry_run else face_id, other, similarity,
    )  # fmt: skip
