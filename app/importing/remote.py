"""Rows into a running server, by its own call: the same semantics, from another machine."""

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx

from app.decision.policy import FaceSelection
from app.importing.outcomes import Outcome, Result, Tell
from app.importing.rows import ImportSourceError, Row

CALLS_AT_ONCE = 8
AHEAD = 2 * CALLS_AT_ONCE
TIMEOUT_S = 120.0
# A server that is busy says when to come back; one that does not come back ends the import.
ATTEMPTS = 8
LONGEST_PAUSE_S = 30.0
BUSY = 503


class RemoteImport:
    """Imports rows into a collection of the server at `url`."""

    def __init__(self, url: str, api_key: str | None, collection: str, face: FaceSelection) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=TIMEOUT_S)
        self._collection = collection
        self._face = face

    def ensure_collection(self) -> str:
        """The embedding space of the collection, which is made if missing. Raises
        ImportSourceError."""
        try:
            answer = self._client.get(f"/v1/collections/{self._collection}")
            if answer.status_code == httpx.codes.NOT_FOUND:
                answer = self._client.post("/v1/collections", json={"name": self._collection})
            answer.raise_for_status()
            return str(answer.json()["embedding_space"])
        except (httpx.HTTPError, KeyError, ValueError) as error:
            raise ImportSourceError(
                f"{self._client.base_url} does not answer as a Likeness server: {error}."
            ) from error

    def run(self, rows: Iterator[Row], tell: Tell) -> None:
        """Import all rows, several calls at a time, told in the order of the rows. Raises
        ImportSourceError when the server is gone."""
        under_way: deque[Future[Outcome]] = deque()
        with ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="import") as threads:
            try:
                for row in rows:
                    under_way.append(threads.submit(self._enroll, row))
                    if len(under_way) >= AHEAD:
                        tell(under_way.popleft().result())
                while under_way:
                    tell(under_way.popleft().result())
            finally:
                threads.shutdown(cancel_futures=True)
                self._client.close()

    def _enroll(self, row: Row) -> Outcome:
        if row.problem is not None:
            return _rejected(row, row.problem.code, row.problem.detail)
        fields: dict[str, Any] = {
            "person_id": row.person_id,
            "collection": self._collection,
            "face_selection": self._face.value,
        }
        if row.metadata is not None:
            fields["metadata"] = dict(row.metadata)
        try:
            data = row.read() if row.read is not None else None
        except OSError as error:
            return _rejected(row, "unreadable_file", str(error.strerror))
        if row.embedding is not None:
            fields["embeddings"] = [row.embedding.tolist()]
        answer = self._post(fields, data)
        members = answer.json()
        if answer.status_code != httpx.codes.OK:
            return _rejected(row, members["code"], members["detail"])
        if members["rejected"]:
            first = members["rejected"][0]
            return _rejected(row, first["reasons"][0], first["detail"])
        face = members["enrolled"][0]
        if face["duplicate"]:
            return Outcome(row.place, row.person_id, Result.SKIPPED, "already_enrolled")
        return Outcome(row.place, row.person_id, Result.ENROLLED, face_id=face["face_id"])

    def _post(self, fields: dict[str, Any], data: bytes | None) -> httpx.Response:
        """One call, sent again under the same key while the server is busy or away."""
        content = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
        content.update(data or b"")
        headers = {"Idempotency-Key": content.hexdigest()}
        body: dict[str, Any] = {"json": fields}
        if data is not None:
            body = {"data": {key: _as_text(value) for key, value in fields.items()}}
            body["files"] = {"image": data}
        reason = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(min(0.5 * 2**attempt, LONGEST_PAUSE_S))
            try:
                answer = self._client.post("/v1/enroll", headers=headers, **body)
            except httpx.TransportError as error:
                reason = str(error)
                continue
            if answer.status_code != BUSY:
                if "problem+json" in answer.headers.get("content-type", "") or answer.is_success:
                    return answer
                raise ImportSourceError(
                    f"The server answered {answer.status_code}, which no Likeness server does; is "
                    "something in between?"
                )
            reason = str(answer.json().get("detail", BUSY))
        raise ImportSourceError(
            f"The server did not take a row in {ATTEMPTS} attempts: {reason} Run the import again "
            "later: what was enrolled is not done twice."
        )


def _as_text(value: Any) -> str:
    """A form's fields carry JSON as text."""
    return value if isinstance(value, str) else json.dumps(value)


def _rejected(row: Row, reason: str, detail: str) -> Outcome:
    return Outcome(row.place, row.person_id, Result.REJECTED, reason, detail)
