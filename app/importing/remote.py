"""Imports rows into a running service, which decides about them as a local import does. They are
sent as archives of some hundred rows, each of which is an import of the service (`POST
/v1/collections/{c}/imports`); one archive is filled while the service imports another.
"""

import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO, Any

import httpx
import orjson

from app.errors import ImageTooLarge, LikenessError
from app.importing.options import ImportOptions, ImportStopped, OnConflict, OnError
from app.importing.outcomes import OutcomeCallback, RowOutcome, RowResult, rejection
from app.importing.server_answers import accepted, detail_of, is_temporary, pause, sendable
from app.importing.source_rows import ImportSourceError, Row, content_of, storable
from app.importing.zips import Bundle, new_bundle
from app.store.identifiers import new_collection_name

ROWS_A_PART = 500
BYTES_A_PART = 32 << 20
PARTS_UNDER_WAY = 2
CHUNK_BYTES = 64 << 10
TIMEOUT_S = 300.0
POLL_S = 0.2
END_ATTEMPTS = 50
# A server that is busy says when to come back; one that does not come back ends the import.
ATTEMPTS = 8
ENDED_WELL = "done"
STOPPED = "stopped"
UNDER_WAY = ("queued", "running")


@dataclass(slots=True)
class _Part:
    """Rows that travel together. `known`: what became of those that were not sent; `import_id`:
    the server's import, once it has the archive; `reported`: how many rows are."""

    rows: list[Row] = field(default_factory=list)
    known: dict[int, RowOutcome] = field(default_factory=dict)
    sent: int = 0
    import_id: str = ""
    reported: int = 0

    def has_refused(self) -> bool:
        """Whether a row is rejected before it was sent."""
        return any(one.result is RowResult.REJECTED for one in self.known.values())


class _Archive:
    """A file as the body of a request, which may be sent more than once; `sent` is called with the
    bytes sent so far and the bytes there are."""

    def __init__(self, file: IO[bytes], sent: Callable[[int, int], None]) -> None:
        self._file = file
        self._sent = sent
        self.size = file.seek(0, os.SEEK_END)

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        self._sent(0, self.size)
        while chunk := self._file.read(CHUNK_BYTES):
            yield chunk  # it was sent when the next one is asked for
            self._sent(self._file.tell(), self.size)


class RemoteImport:
    """Imports rows into a collection of the server at `url`."""

    def __init__(
        self,
        url: str,
        collection: str,
        options: ImportOptions,
        max_bytes: int,
        *,
        key: str | None = None,
    ) -> None:
        """`max_bytes`: larger photos are not sent; `key` is sent as a bearer token. Raises
        ImportSourceError if it cannot be one, or if `url` is no address of a server, and
        InvalidRequest if no collection can have that name."""
        headers = {"Authorization": f"Bearer {sendable(key)}"} if key else {}
        self._client = httpx.Client(base_url=_address(url), headers=headers, timeout=TIMEOUT_S)
        self.collection = new_collection_name(collection)
        self._url = f"/v1/collections/{collection}"
        self._options = options
        self._max_bytes = max_bytes
        self._space = ""
        # An import that stops at a row must have sent nothing beyond it.
        stops = OnError.STOP is options.on_error or OnConflict.STOP is options.on_conflict
        self._at_once = 1 if stops else PARTS_UNDER_WAY
        self._stops_at_errors = options.on_error is OnError.STOP
        # Called several times a second, with the number of rows done but not reported yet.
        self.watch: Callable[[int], None] = lambda _rows: None
        # Called with the bytes sent of an archive, and the bytes it has.
        self.watch_upload: Callable[[int, int], None] = lambda _sent, _size: None
        # Called with the reason while the server is busy or away, and with "" when it is back.
        self.watch_server: Callable[[str], None] = lambda _reason: None
        self._done = 0
        self._poll_s = POLL_S  # longer while the key has reached a limit

    def ensure_collection(self) -> tuple[str, bool]:
        """The embedding space of the collection, which is made if missing; the second value says
        whether it was. Raises ImportSourceError."""
        answer = self._call("GET", self._url)
        is_new = answer.status_code == httpx.codes.NOT_FOUND
        if is_new:
            answer = self._call("POST", "/v1/collections", json={"name": self.collection})
            if answer.status_code == httpx.codes.CONFLICT:  # another client was faster
                is_new, answer = False, self._call("GET", self._url)
        self._space = str(accepted(answer, "embedding_space")["embedding_space"])
        return self._space, is_new

    def run(self, rows: Iterator[Row], on_outcome: OutcomeCallback) -> None:
        """Import all rows; outcomes are reported in their order as each archive is done. Where this
        ends early, what is under way is cancelled, and its rows that are done are reported. Raises
        ImportSourceError and ImportStopped."""
        under_way: deque[_Part] = deque()
        try:
            for part in self._parts(rows):
                under_way.append(part)
                if len(under_way) >= self._at_once:
                    self._finish(under_way, on_outcome)
            while under_way:
                self._finish(under_way, on_outcome)
        finally:
            for part in reversed(under_way):  # the one that waits first, so that it does not begin
                self._cancel(part)
            for part in under_way:
                self._end(part, on_outcome)
            self._client.close()

    # --- there --------------------------------------------------------------------------------

    def _parts(self, rows: Iterator[Row]) -> Iterator[_Part]:
        """Rows in parts, each sent."""
        row = next(rows, None)
        while row is not None:
            part = _Part()
            with tempfile.TemporaryFile() as file:
                with new_bundle(file) as bundle:
                    while row is not None:
                        self._add(row, part, bundle)
                        self.watch(self._done)
                        if self._is_full(part, file):
                            break
                        row = next(rows, None)
                if part.sent:
                    self._send(part, file)
                yield part
            row = next(rows, None)

    def _is_full(self, part: _Part, file: IO[bytes]) -> bool:
        stop = self._stops_at_errors and part.has_refused()
        return stop or len(part.rows) >= ROWS_A_PART or file.tell() >= BYTES_A_PART

    def _add(self, row: Row, part: _Part, bundle: Bundle) -> None:
        try:
            bundle.add(self._members(storable(row), bundle, str(len(part.rows))))
            part.sent += 1
        except LikenessError as error:
            part.known[len(part.rows)] = rejection(row, error)
        part.rows.append(row)

    def _members(self, row: Row, bundle: Bundle, name: str) -> dict[str, Any]:
        """The row of the manifest. Raises ImageTooLarge or UnreadableFile."""
        members: dict[str, Any] = {"person_id": row.person_id}
        if row.metadata is not None:
            members["metadata"] = dict(row.metadata)
        if row.without_face:
            return {**members, "without_face": True}
        if row.different_from is not None:
            return {**members, "different_from": row.different_from}
        if row.read is not None:
            data = content_of(row.read)
            if len(data) > self._max_bytes:
                raise ImageTooLarge(f"The photo has more than {self._max_bytes:,} bytes.")
            return {**members, "image": bundle.add_file(name, data)}
        members |= {"embedding": row.embedding, "embedding_space": self._space}
        members |= {"quality": dict(row.quality), "content_digest": row.content_digest}
        if row.crop is not None:
            members["crop"] = bundle.add_file(name, content_of(row.crop))
        return {**members, "face_id": row.face_id}

    def _send(self, part: _Part, file: IO[bytes]) -> None:
        query = self._options.model_dump(mode="json", exclude_none=True, exclude={"gate"})
        if self._options.gate is not None:
            query["gate"] = self._options.gate.model_dump_json(exclude_none=True)

        archive = _Archive(file, self.watch_upload)
        headers = {"Content-Type": "application/zip", "Content-Length": str(archive.size)}
        answer = self._call(
            "POST", f"{self._url}/imports", content=archive, params=query, headers=headers
        )
        part.import_id = str(accepted(answer, "import_id")["import_id"])

    # --- and back -----------------------------------------------------------------------------

    def _finish(self, under_way: deque[_Part], on_outcome: OutcomeCallback) -> None:
        """Report the first part's rows when the server is done with it."""
        part = under_way[0]
        ended = self._wait(part) if part.sent else {"state": ENDED_WELL}
        stopped = ended["state"] == STOPPED
        last = self._report_rows(part, on_outcome, stopped=stopped)
        reported, part.reported = part.reported, len(part.rows)  # `_end` reports none of the rest
        if stopped or (self._stops_at_errors and part.has_refused()):
            raise ImportStopped(last)
        if ended["state"] != ENDED_WELL:
            detail = ended.get("detail") or f"the import was {ended['state']}."
            raise ImportSourceError(f"The server did not finish: {detail}")
        if reported < len(part.rows):
            raise ImportSourceError(
                "The server imported all rows, but its report is damaged or ends before the "
                f"outcome of {part.rows[reported].place}. Run the import again: what was enrolled "
                "is not done twice."
            )
        self._forget(under_way.popleft())

    def _report_rows(
        self, part: _Part, on_outcome: OutcomeCallback, *, stopped: bool = False
    ) -> str:
        """Report the rows of an import that has ended, up to the one before which it ended, or at
        which it `stopped`. Returns what became of the last."""
        of_server = deque(self._report(part) if part.sent else ())
        ends_early = stopped or len(of_server) < part.sent
        last, self._done = "", 0
        for index, row in enumerate(part.rows):
            if ends_early and not of_server:
                break
            outcome = part.known.get(index) or of_server.popleft()
            if index >= part.reported:
                part.reported = index + 1
                on_outcome(replace(outcome, place=row.place))
            last = f"{row.place}: {outcome.detail or outcome.reason}"
        return last

    def _wait(self, part: _Part) -> dict[str, Any]:
        url = f"{self._url}/imports/{part.import_id}"
        while (job := accepted(self._call("GET", url), "state"))["state"] in UNDER_WAY:
            counts = job.get("counts") or {}
            self._done = sum(int(counts.get(result.value, 0)) for result in RowResult)
            self.watch(self._done)
            time.sleep(self._poll_s)
        return job

    def _report(self, part: _Part) -> Iterator[RowOutcome]:
        """The outcomes of the rows that were sent, in their order, as far as they can be read."""
        answer = self._call("GET", f"{self._url}/imports/{part.import_id}/report")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return  # it ended before its first row
        if not answer.is_success:
            accepted(answer)
        # As bytes: texts in it can have characters that end a line elsewhere, such as U+2028.
        for line in answer.content.splitlines():
            try:
                members = orjson.loads(line)
                outcome = RowOutcome(**{**members, "result": RowResult(members["result"])})
            except (ValueError, TypeError, KeyError):
                return  # cut off, damaged or of another kind
            yield outcome

    def _cancel(self, part: _Part) -> None:
        """End the server's import if it is under way."""
        url = f"{self._url}/imports/{part.import_id}"
        with suppress(httpx.HTTPError, ImportSourceError):
            if part.sent and accepted(self._client.get(url)).get("state") in UNDER_WAY:
                self._client.delete(url)

    def _end(self, part: _Part, on_outcome: OutcomeCallback) -> None:
        """Report the rows that were done by an import that was cancelled, then forget it."""
        url = f"{self._url}/imports/{part.import_id}"
        try:
            with suppress(httpx.HTTPError, ImportSourceError):
                for _ in range(END_ATTEMPTS if part.sent else 0):
                    if accepted(self._client.get(url)).get("state") not in UNDER_WAY:
                        break
                    time.sleep(POLL_S)
                if part.reported < len(part.rows):
                    self._report_rows(part, on_outcome)
        finally:
            self._forget(part)

    def _forget(self, part: _Part) -> None:
        """Let the server forget an import that has ended, and its report."""
        if part.sent:
            with suppress(httpx.HTTPError):
                self._client.delete(f"{self._url}/imports/{part.import_id}")

    def _call(self, method: str, url: str, **request: Any) -> httpx.Response:
        """One call, sent again while the server is busy or away, or the key has reached a limit.
        Raises ImportSourceError."""
        reason = ""
        for attempt in range(ATTEMPTS):
            try:
                answer = self._client.request(method, url, **request)
            except httpx.RequestError as error:
                reason, asked = f"{error}.", ""
            else:
                if not is_temporary(answer):
                    self._poll_s = max(POLL_S, self._poll_s / 2)
                    self.watch_server("")
                    return answer
                reason, asked = detail_of(answer), answer.headers.get("Retry-After", "")
                if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
                    self._poll_s = max(self._poll_s, pause(0, asked))
            if attempt < ATTEMPTS - 1:
                self.watch_server(f"The import waits for {self._client.base_url}: {reason}")
                time.sleep(pause(attempt, asked))
        raise ImportSourceError(
            f"{self._client.base_url} did not answer in {ATTEMPTS} attempts: {reason} Run the "
            "import again later: what was enrolled is not done twice."
        )


def _address(url: str) -> httpx.URL:
    """The address of a server. Raises ImportSourceError if it cannot be one."""
    reason = "it does not begin with http:// and a host"
    if re.match(r"https?://[^/]", url):
        try:
            address = httpx.URL(url.rstrip("/"))
            address.raw_host.decode().encode("idna")  # which a connection does, too
            return address
        except (httpx.InvalidURL, UnicodeError) as error:
            reason = str(error)
    raise ImportSourceError(
        f"'{url}' is not an address such as http://host:8000 (--url): {reason}."
    )
