"""Serves the scripts of the pages of the API's documentation."""

import stat
from os import PathLike, stat_result
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.responses import FileResponse, Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

NAME = "static-offline-docs"  # of fastapi-offline's mount
# A client that does not read makes the next piece wait.
PIECE = 64 * 1024


class FilesInMemory(StaticFiles):
    """Reads each file once. A file that is opened for each request would stay open as long as a
    client reads nothing: such clients, who need no key, could use up the file descriptors."""

    def __init__(self, directory: str | PathLike[str]) -> None:
        super().__init__(directory=directory)
        self._contents: dict[str, bytes] = {}

    def lookup_path(self, path: str) -> tuple[str, stat_result | None]:
        """Find a file, and read it the first time. Called on a thread."""
        full_path, found = super().lookup_path(path)
        if found is not None and stat.S_ISREG(found.st_mode) and full_path not in self._contents:
            self._contents[full_path] = Path(full_path).read_bytes()
        return full_path, found

    def file_response(
        self,
        full_path: str | PathLike[str],
        stat_result: stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """The answer, which is empty if the client has the same version already."""
        answer = super().file_response(full_path, stat_result, scope, status_code)
        if isinstance(answer, FileResponse):
            return _InPieces(answer, self._contents[str(full_path)])
        return answer


class _InPieces(Response):
    """Sends the content of a file in pieces, with the status and headers of `answer`."""

    def __init__(self, answer: FileResponse, content: bytes) -> None:
        super().__init__(content, answer.status_code)
        del answer.headers["accept-ranges"]
        self.raw_headers = answer.raw_headers

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        whole = memoryview(self.body)
        for at in range(0, len(whole) if scope["method"] != "HEAD" else 0, PIECE):
            piece = bytes(whole[at : at + PIECE])
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def serve_from_memory(app: FastAPI) -> None:
    """Replace the files of fastapi-offline. Raises LookupError if it has none."""
    mounts = [one for one in app.routes if isinstance(one, Mount) and one.name == NAME]
    if not mounts or not isinstance(mounts[0].app, StaticFiles):
        raise LookupError(f"fastapi-offline has no mount {NAME}")
    mounts[0].app = FilesInMemory(mounts[0].app.directory or "")
