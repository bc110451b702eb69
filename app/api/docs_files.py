"""Serves the scripts of the pages of the API's documentation."""

import stat
from os import PathLike, stat_result
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.responses import FileResponse, Response
from starlette.routing import Mount
from starlette.types import Scope

NAME = "static-offline-docs"  # of fastapi-offline's mount
METHODS = ("GET", "HEAD")


class FilesInMemory(StaticFiles):
    """Reads each file once. A file that is opened for each request would stay open as long as a
    client reads nothing: such clients, who need no key, could use up the file descriptors."""

    def __init__(self, directory: str | PathLike[str]) -> None:
        super().__init__(directory=directory)
        self._contents: dict[str, bytes] = {}
        self._found: dict[str, tuple[str, stat_result]] = {}

    def lookup_path(self, path: str) -> tuple[str, stat_result | None]:
        """Find a file, and read it the first time. Called on a thread."""
        full_path, found = super().lookup_path(path)
        if found is not None and stat.S_ISREG(found.st_mode):
            if full_path not in self._contents:
                self._contents[full_path] = Path(full_path).read_bytes()
            self._found[path] = full_path, found
        return full_path, found

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The answer; without a thread if the file has been read already."""
        if path in self._found and scope["method"] in METHODS:
            return self.file_response(*self._found[path], scope)
        return await super().get_response(path, scope)

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
            content = self._contents[str(full_path)] if scope["method"] != "HEAD" else b""
            whole = Response(content, status_code)
            del answer.headers["accept-ranges"]
            whole.raw_headers = answer.raw_headers
            return whole
        return answer


def serve_from_memory(app: FastAPI) -> None:
    """Replace the files of fastapi-offline. Raises LookupError if it has none."""
    mounts = [one for one in app.routes if isinstance(one, Mount) and one.name == NAME]
    if not mounts or not isinstance(mounts[0].app, StaticFiles):
        raise LookupError(f"fastapi-offline has no mount {NAME}")
    mounts[0].app = FilesInMemory(mounts[0].app.directory or "")
