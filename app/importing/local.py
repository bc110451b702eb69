"""Imports rows into the database of this machine: photos are analysed in parallel, and rows are
decided in their order. The order matters because a row is compared with the rows before it: so an
import that was interrupted and run again gives the same gallery as a single run.
"""

import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from app.decision.pairs import all_declared
from app.decision.policy import policy_of
from app.errors import ConsentMissing, InvalidRequest, LikenessError, PersonExists, PersonNotFound
from app.imaging import check_crop
from app.importing.checks import CONFLICT, ConflictChecker, Prepared, resembles, to_store
from app.importing.in_flight import RowsInFlight
from app.importing.known_rows import already, replace_metadata, update_metadata
from app.importing.options import ImportOptions, ImportStopped, OnConflict, OnError
from app.importing.outcomes import Journal, OutcomeCallback, RowOutcome, RowResult, rejection
from app.importing.row_consents import RowConsents
from app.importing.source_rows import Row, content_of, storable
from app.recognition.enroll import content_digest, template_from_embedding, template_from_photo
from app.services import Services
from app.store.records import CollectionRecord, NewTemplate, PersonTemplate
from app.store.sql.lookups import bound_to
from app.telemetry.logs import log

ROWS_A_TRANSACTION = 1_000
# Of those that are compared with one another before.
CHECKED_A_TRANSACTION = 256
SECONDS_A_TRANSACTION = 1.0
SERVER_ERROR = 500
# So many photos in a row may fail unexpectedly; one more ends the import.
MOST_UNEXPECTED = 10
UNEXPECTED = "Likeness failed at this photo with an unexpected error; the log has its traceback."
# A reason: the row declares two persons to be different.
DECLARED = "declared_different"


@dataclass(frozen=True, slots=True)
class _Photo:
    """A row whose photo was read."""

    row: Row
    data: bytes
    digest: str
    key: bytes


class LocalImport:
    """Imports rows into one collection."""

    _journal: Journal  # open while it runs

    def __init__(
        self, services: Services, record: CollectionRecord, options: ImportOptions,
        workers: int | None = None, import_id: str | None = None,
    ) -> None:  # fmt: skip
        """`workers`: photos at work at a time; as many as the service has without. The log has the
        `import_id`."""
        self._workers = workers or services.scheduler.workers
        self._services = services
        self._record = record
        self._options = options
        self._policy = policy_of(record)
        if options.gate is not None:
            self._policy = self._policy.model_copy(update={"enroll_gate": options.gate})
        self._checker = ConflictChecker(services, record, options)
        self._consents = RowConsents(services.gallery.store, record)
        decided_by: list[Any] = [
            services.gallery.store.database.identity(), record.name, record.embedding_space,
            self._policy.model_dump(mode="json"), record.calibration_id, options.face.value,
            options.near_duplicate, options.on_conflict,
        ]  # fmt: skip
        # Faces of persons who are declared to be different are no conflicts.
        if declared := all_declared(services.gallery.store.pairs, record.name):
            decided_by.append(sorted((key, *sorted(others)) for key, others in declared.items()))
        self._decided_by = json.dumps(decided_by, sort_keys=True)
        self._batch: list[Prepared] = []
        self._import_id = import_id
        self._rows = 0  # whose turn has come
        self._unexpected = 0  # errors in a row
        self._under_way = RowsInFlight(self._workers)
        self._since = time.monotonic()

    def run(self, rows: Iterator[Row], on_outcome: OutcomeCallback) -> None:
        """Import all rows; each outcome is reported when it is on disk.

        Raises StoreFull, StoreUnavailable, ImportSourceError, ImportStopped, CollectionNotFound if
        the collection is deleted (also if its name is given to another one), and what the
        analysis of more than MOST_UNEXPECTED photos in a row raises. What was reported stays done.
        """
        path = self._services.settings.data_dir / "imports.db"
        self._journal = Journal(path, self._decided_by)
        failed: list[LikenessError] = []
        with (
            bound_to(self._record),
            ThreadPoolExecutor(self._workers, thread_name_prefix="import") as threads,
        ):
            try:
                for arrived in self._read(rows, failed):
                    for ready, size in self._submit(arrived, threads):
                        self._under_way.add(ready, size)
                    while self._under_way.has_one_to_take():
                        self._take(self._under_way.take(), on_outcome)
                while self._under_way:
                    self._take(self._under_way.take(), on_outcome)
                self._flush(on_outcome)
            finally:
                threads.shutdown(cancel_futures=True)
                self._journal.close()
        if failed:
            raise failed[0]

    def _read(
        self, rows: Iterator[Row], failed: list[LikenessError]
    ) -> Iterator[list["Prepared | _Photo"]]:
        """Rows, read as they come, some at a time. A source that breaks ends them."""
        arrived: list[Prepared | _Photo] = []
        size = 0
        try:
            for row in rows:
                one = self._prepare(row)
                arrived.append(one)
                size += len(one.data) if isinstance(one, _Photo) else 0
                if self._under_way.is_enough(len(arrived), size):
                    yield arrived
                    arrived, size = [], 0
        except LikenessError as error:
            failed.append(error)
        if arrived:
            yield arrived

    def _prepare(self, row: Row) -> "Prepared | _Photo":
        """A photo that may have to be analysed, or the outcome of the row if it is known
        already."""
        if row.problem is not None and row.problem.status < SERVER_ERROR:
            return Prepared(row, outcome=rejection(row, row.problem))
        try:
            row = storable(row)
            self._consents.require(row)
            if row.read is not None:
                data = content_of(row.read)
                digest = content_digest(data)
                key = self._journal.key(row.person_id, digest)
                return self._refused_before(row, key) or _Photo(row, data, digest, key)
            if row.without_face or row.different_from is not None:
                return Prepared(row)
            return self._embedded(row)
        except LikenessError as error:
            if error.status >= SERVER_ERROR:
                raise
            return Prepared(row, outcome=rejection(row, error))

    def _embedded(self, row: Row) -> Prepared:
        assert row.embedding is not None, "a row has a photo, an embedding or a problem"
        made = template_from_embedding(self._services, row.embedding)
        side = self._services.pack.recogniser.input_size
        kept = row.crop if self._policy.keep_crops else None
        crop = None if kept is None else content_of(kept)
        if crop is not None:
            check_crop(crop, side)
        digest = row.content_digest or made.content_digest
        template = NewTemplate(made.embedding, digest, dict(row.quality), crop)
        if not self._checker.concerns(row):
            return Prepared(row, template)
        key = self._journal.key(row.person_id, digest)
        return self._refused_before(row, key) or Prepared(row, template, key=key)

    def _submit(
        self, arrived: list["Prepared | _Photo"], threads: ThreadPoolExecutor
    ) -> Iterator[tuple["Prepared | Future[Prepared]", int]]:
        """Photos that are not enrolled yet, on the threads; with the bytes that they hold there."""
        photos = [one for one in arrived if isinstance(one, _Photo)]
        contents = [(one.row.person_id, one.digest) for one in photos]
        store, name = self._services.gallery.store, self._record.name
        known = store.imports.known_contents(name, contents) if photos else set()
        refusals = iter(self._consents.refusals([one.row for one in photos]))
        for one in arrived:
            refused = next(refusals) if isinstance(one, _Photo) else None
            if isinstance(one, Prepared):
                yield one, 0
            elif (one.row.person_id, one.digest) in known:
                yield Prepared(one.row, outcome=already(one.row)), 0
            elif refused is not None:
                yield Prepared(one.row, outcome=rejection(one.row, refused)), 0
            else:
                yield threads.submit(self._analyse, one), len(one.data)

    def _refused_before(self, row: Row, key: bytes) -> Prepared | None:
        before = None if self._options.retry_refused else self._journal.find(key)
        if before is None:
            return None
        result, reason, detail = before
        detail = detail or "An earlier run found this; --retry-refused analyses the row again."
        return Prepared(
            row, outcome=RowOutcome(row.place, row.person_id, RowResult(result), reason, detail)
        )

    def _analyse(self, photo: "_Photo") -> Prepared:
        row, key = photo.row, photo.key
        try:
            template = template_from_photo(
                self._services, photo.data, self._options.face, self._policy
            )
        except LikenessError as error:
            if error.status >= SERVER_ERROR:  # not the photo's fault: it can be tried again
                raise
            return Prepared(row, outcome=rejection(row, error), key=key)
        except (OSError, MemoryError):  # the machine's fault, such as too many open files
            raise
        except Exception as error:  # noqa: BLE001 (a library failed, and would fail again)
            # Without the key: another run tries it again.
            return Prepared(row, outcome=rejection(row, LikenessError(UNEXPECTED)), failure=error)
        return Prepared(row, template, key=key)

    def _take(self, prepared: Prepared, on_outcome: OutcomeCallback) -> None:
        """Decide about the next row in order."""
        row = prepared.row
        self._rows += 1
        if prepared.failure is not None:
            self._note_failure(prepared.failure)
            prepared = replace(prepared, failure=None)  # its traceback holds the photo
        elif prepared.key is not None:  # it was analysed
            self._unexpected = 0
        faceless = row.without_face or row.different_from is not None
        if stored_now := prepared.outcome is None and faceless:
            self._flush(on_outcome)
            stored = self._create(row) if row.different_from is None else self._declare(row)
            prepared = Prepared(row, outcome=stored)
        self._batch.append(prepared)
        most = CHECKED_A_TRANSACTION if self._checker.concerns(prepared.row) else ROWS_A_TRANSACTION
        old = time.monotonic() - self._since > SECONDS_A_TRANSACTION
        if stored_now or len(self._batch) >= most or old:
            self._flush(on_outcome)

    def _note_failure(self, error: Exception) -> None:
        """Log an unexpected error at this row's photo; raise it if it is one too many in a row."""
        self._unexpected += 1
        if self._unexpected > MOST_UNEXPECTED:
            raise error
        # Without the row's place, whose path may name a person.
        log(logging.ERROR, "a photo of an import failed", error, import_id=self._import_id,
            row=self._rows)  # fmt: skip

    def _stops_at(self, outcome: RowOutcome | None) -> bool:
        if outcome is None or outcome.result is not RowResult.REJECTED:
            return False
        conflict = outcome.reason == CONFLICT and self._options.on_conflict is OnConflict.STOP
        return conflict or self._options.on_error is OnError.STOP

    def _create(self, row: Row) -> RowOutcome:
        """A person who has no face."""
        store, name = self._services.gallery.store, self._record.name
        if self._options.dry_run:
            return RowOutcome(row.place, row.person_id, RowResult.ENROLLED)
        try:
            try:
                store.persons.create(name, row.person_id, row.metadata or {})
            except PersonExists:
                return already(row, replaced=update_metadata(store, name, row))
        except ConsentMissing as error:
            return rejection(row, error)
        return RowOutcome(row.place, row.person_id, RowResult.ENROLLED)

    def _declare(self, row: Row) -> RowOutcome:
        """Two persons who are different, both of whom are there by now."""
        assert row.different_from is not None, "checked by the caller"
        if self._options.dry_run:
            return RowOutcome(row.place, row.person_id, RowResult.ENROLLED, DECLARED)
        store, name = self._services.gallery.store, self._record.name
        try:
            store.pairs.declare(name, row.person_id, row.different_from)
        except PersonNotFound as error:  # the report must not name persons that it does not list
            detail = f"One of the two persons is not in the collection '{name}'; import both first."
            return rejection(row, type(error)(detail))
        except InvalidRequest as error:
            return rejection(row, error)
        return RowOutcome(row.place, row.person_id, RowResult.ENROLLED, DECLARED)

    def _note(self, prepared: Prepared) -> None:
        outcome = prepared.outcome
        # A dry run compares with a gallery that lacks the rows before it.
        if prepared.key is None or outcome is None or self._options.dry_run:
            return
        # The journal names nobody.
        detail = "" if outcome.reason == CONFLICT else outcome.detail
        self._journal.note(prepared.key, outcome.result.value, outcome.reason, detail)

    def _flush(self, on_outcome: OutcomeCallback) -> None:
        """Check and store what is waiting, then report it, in the order of the rows. Raises
        ImportStopped after the row at which to stop."""
        batch, self._batch = self._batch, []
        rows = self._stored(self._up_to_stop(self._checker.check(batch)))
        if not self._options.dry_run:
            rows = replace_metadata(self._services.gallery.store, self._record.name, rows)
        outcomes = [one.outcome for one in rows if one.outcome is not None]
        for outcome in outcomes:
            on_outcome(outcome)
        self._since = time.monotonic()
        last = next((outcome for outcome in outcomes if self._stops_at(outcome)), None)
        if last is not None:
            raise ImportStopped(f"{last.place}: {last.detail or last.reason}")

    def _stored(self, rows: list[Prepared]) -> list[Prepared]:
        """Store the rows that have no outcome yet. Returns the rows with their outcomes, up to the
        one at which to stop."""
        # First, so that a run that continues after a crash refuses the same rows again.
        for one in rows:
            self._note(one)
        self._journal.keep()
        answers = iter(self._answers(to_store(rows)))
        done = (one if one.template is None else self._decided(one, next(answers)) for one in rows)
        return self._up_to_stop(done)

    def _answers(self, new: list[PersonTemplate]) -> Sequence[str | LikenessError | None]:
        gallery, name = self._services.gallery, self._record.name
        if not new:
            return []
        stops = self._options.on_error is OnError.STOP
        if not self._options.dry_run:
            return gallery.enroll_many(name, new, until_refused=stops)
        refused = gallery.store.imports.refused(name, new, until_refused=stops)
        return [error or "" for error in refused]

    def _decided(self, one: Prepared, answer: str | LikenessError | None) -> Prepared:
        """A row after it was stored, or not, as the store answered."""
        if isinstance(answer, LikenessError):
            return one.refused(answer)
        if answer is None:
            return replace(one, outcome=already(one.row))
        other, similarity = one.conflict or (None, None)
        reason, detail = (CONFLICT, resembles(other)) if other else ("", "")
        outcome = RowOutcome(
            one.row.place, one.row.person_id, RowResult.ENROLLED, reason, detail,
            answer or None, other, similarity,
        )  # fmt: skip
        return replace(one, outcome=outcome)

    def _up_to_stop(self, rows: Iterable[Prepared]) -> list[Prepared]:
        """The rows up to the one at which to stop; no row beyond it is taken."""
        wanted = []
        for one in rows:
            wanted.append(one)
            if self._stops_at(one.outcome):
                break
        return wanted
