"""`/v1/collections/{c}/imports`: an archive in one call, imported by the service itself."""

import asyncio
import errno
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, BinaryIO, ParamSpec, TypeVar

from fastapi import Query, Request
from fastapi.responses import StreamingResponse

from app.access.keys import Scope
from app.api.access import needs
from app.api.context import Context
from app.api.fields import Collection
from app.api.problems import ANY_BODY, ANY_WRITE, IN_COLLECTION, IN_SPACE, problems
from app.api.responses import TIME, Answer, with_example
from app.api.routers import GalleryRouter
from app.decision.gates import require_passable
from app.errors import (
    ImportNotFound,
    InvalidRequest,
    LivenessUnavailable,
    RequestTooLarge,
    StoreFull,
    UnsupportedMediaType,
)
from app.importing.job_folder import UNDER_WAY, ImportJob, Upload
from app.importing.jobs import ImportJobs
from app.importing.options import UploadOptions
from app.importing.patterns import PathPattern
from app.importing.source_rows import ImportSourceError
from app.telemetry.tasks import ended

P = ParamSpec("P")
T = TypeVar("T")

OF_IMPORT = (*IN_COLLECTION, ImportNotFound)
router = GalleryRouter(prefix="/v1/collections/{collection}/imports", tags=["imports"])

# What a body is, by its Content-Type.
KINDS = {
    "application/zip": ".zip",
    "application/x-tar": ".tar",
    "application/gzip": ".tar",
    "application/x-ndjson": ".jsonl",
    "application/jsonl": ".jsonl",
    "text/csv": ".csv",
    "application/vnd.apache.parquet": ".parquet",
}
EVENTS_EVERY_S = 0.5
REPORT_PIECE = 256 * 1024  # bytes that are read at a time
# Proxies end what is silent for long.
ALIVE_EVERY_S = 15.0


class EventStream(StreamingResponse):
    media_type = "text/event-stream"


class Report(StreamingResponse):
    media_type = "application/x-ndjson"


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One event for each change, named by the state; `data` is the import.",
        "content": {
            EventStream.media_type: {
                "schema": {"type": "string"},
                "example": 'event: running\ndata: {"import_id": "5f0c6b0e…", …}\n\n',
            }
        },
    }
}
REPORT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One JSON object in each line: the outcome of a row.",
        "content": {
            Report.media_type: {
                "schema": {"type": "string"},
                "example": '{"place": "people.zip/ada/1.jpg", "person_id": "ada", '
                '"result": "enrolled", "reason": ""}\n',
            }
        },
    }
}
BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS},
    }
}


_IMPORT: dict[str, Any] = {
    "import_id": "5f0c6b0e6f5b4a8e9b1d2c3a4f5e6d7c",
    "collection": "default",
    "state": "done",
    "created_at": TIME,
    "started_at": TIME,
    "finished_at": TIME,
    "archive": "5f0c6b0e6f5b4a8e9b1d2c3a4f5e6d7c.zip",
    "options": {"face": "largest", "on_conflict": "report"},
    "total": 200,
    "counts": {
        "enrolled": 197,
        "skipped": 0,
        "rejected": 3,
        "conflicts": 1,
        "reasons": [
            {"result": "enrolled", "reason": "", "rows": 196},
            {"result": "enrolled", "reason": "conflict", "rows": 1},
            {"result": "rejected", "reason": "no_face", "rows": 3},
        ],
    },
    "attempts": 1,
    "cancelling": False,
    "detail": None,
}


class ImportAnswer(Answer, ImportJob):
    """One import, with its progress and counts."""

    model_config = with_example(**_IMPORT)


class ImportList(Answer):
    """The imports of a collection, the newest first."""

    model_config = with_example(items=[_IMPORT])
    items: list[ImportJob]


@router.post(
    "",
    status_code=202,
    responses=problems(ANY_BODY, ANY_WRITE, IN_SPACE, (UnsupportedMediaType, LivenessUnavailable)),
    openapi_extra=BODY,
)
@needs(Scope.MANAGE)
async def create_import(
    request: Request,
    context: Context,
    collection: Collection,
    options: Annotated[UploadOptions, Query()],
) -> ImportAnswer:
    """Upload a zip, tar or table as the body, to be imported in the background.

    The formats are those of `likeness import`. Use the answer's `import_id` to read the progress.
    If the service restarts, it continues the import.
    """
    jobs = context.imports
    await context.read(context.gallery.require, collection)
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in KINDS:
        raise UnsupportedMediaType(
            f"The body's content type is '{kind or 'missing'}'; send the archive itself as the "
            f"body (with curl: -X POST -T FILE), with one of {', '.join(KINDS)}."
        )
    if options.pattern is not None:
        _check_pattern(options.pattern)
    if options.gate is not None:
        require_passable(options.gate, "gate", context.services.measurable)
    opening = _on_thread(jobs.new_upload, KINDS[kind])
    try:
        upload = await ended(opening)
        await _receive(request, upload, context.services.settings.max_import_bytes)
        # It is written to the audit log, which may wait for other writers.
        creating = context.write(jobs.create, collection, upload, options)
        job = await ended(asyncio.create_task(creating))
    finally:
        if opening.exception() is None:
            await ended(_on_thread(opening.result().close))
    return ImportAnswer(**job.model_dump(), **context.envelope())


def _on_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Task[T]:
    return asyncio.create_task(asyncio.to_thread(work, *args, **kwargs))


def _check_pattern(pattern: str) -> None:
    """Raise InvalidRequest before an archive of gigabytes is sent for nothing."""
    try:
        PathPattern(pattern)
    except ImportSourceError as error:
        raise InvalidRequest(f"pattern: {error.detail}") from error


async def _receive(request: Request, upload: Upload, most: int) -> None:
    """The body onto the disk, a piece at a time. Raises RequestTooLarge or StoreFull."""
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > most:
                raise RequestTooLarge(
                    f"The archive has more than {most:,} bytes (LIKENESS_MAX_IMPORT_BYTES); "
                    "send it in parts."
                )
            await asyncio.to_thread(upload.write, piece)
        await asyncio.to_thread(upload.sync)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull("There is no space for the archive; nothing was stored.") from error
        raise


@router.get("", responses=problems(IN_COLLECTION))
@needs(Scope.MANAGE)
async def list_imports(context: Context, collection: Collection) -> ImportList:
    """List the imports of a collection, the newest first."""
    found = await asyncio.to_thread(context.imports.of, collection)
    return ImportList(items=found, **context.envelope())


@router.get("/{import_id}", responses=problems(OF_IMPORT))
@needs(Scope.MANAGE)
async def read_import(context: Context, collection: Collection, import_id: str) -> ImportAnswer:
    """Read the state and the counts of an import."""
    job = await asyncio.to_thread(context.imports.get, collection, import_id)
    return ImportAnswer(**job.model_dump(), **context.envelope())


@router.get(
    "/{import_id}/events",
    response_class=EventStream,
    responses={**problems(OF_IMPORT), **EVENTS},
)
@needs(Scope.MANAGE)
async def watch_import(context: Context, collection: Collection, import_id: str) -> EventStream:
    """Watch an import through server-sent events, one for each change, until it ends."""
    jobs = context.imports
    await asyncio.to_thread(jobs.get, collection, import_id)
    return EventStream(_events(jobs, collection, import_id))


async def _events(jobs: ImportJobs, collection: str, import_id: str) -> AsyncIterator[str]:
    last, sent_at = "", 0.0
    while True:
        try:
            job = await asyncio.to_thread(jobs.get, collection, import_id)
        except ImportNotFound:  # deleted meanwhile
            return
        sent, now = job.model_dump_json(), time.monotonic()
        if sent != last:
            yield f"event: {job.state.value}\ndata: {sent}\n\n"
            last, sent_at = sent, now
        elif now - sent_at > ALIVE_EVERY_S:
            yield ": nothing new\n\n"
            sent_at = now
        if job.state not in UNDER_WAY:
            return
        await asyncio.sleep(EVENTS_EVERY_S)


@router.get(
    "/{import_id}/report",
    response_class=Report,
    responses={**problems(OF_IMPORT), **REPORT},
)
@needs(Scope.MANAGE)
async def read_import_report(context: Context, collection: Collection, import_id: str) -> Report:
    """Read the outcome of each row so far, as JSON Lines."""
    file = await asyncio.to_thread(context.imports.open_report, collection, import_id)
    return Report(_whole_lines(file, os.fstat(file.fileno()).st_size))


async def _whole_lines(file: BinaryIO, size: int) -> AsyncIterator[bytes]:
    """The lines within the first `size` bytes. The file may grow meanwhile."""
    unfinished_line = b""
    with file:
        while size > 0 and (piece := await asyncio.to_thread(file.read, min(size, REPORT_PIECE))):
            size -= len(piece)
            lines, end, rest = piece.rpartition(b"\n")
            if end:
                yield unfinished_line + lines + end
                unfinished_line = b""
            unfinished_line += rest


@router.delete("/{import_id}", responses=problems(OF_IMPORT, ANY_WRITE))
@needs(Scope.MANAGE)
async def cancel_import(context: Context, collection: Collection, import_id: str) -> ImportAnswer:
    """Cancel an import, or delete the record and report of one that has ended.

    Persons and faces that it enrolled are kept.
    """
    job = await context.delete(context.imports.cancel, collection, import_id)
    return ImportAnswer(**job.model_dump(), **context.envelope())
