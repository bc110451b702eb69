"""A zip with a manifest and the files that its rows name: what an export writes with crops, and
what an import sends to a server."""

import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import orjson

MANIFEST = "manifest.jsonl"
IN_MEMORY = 16 << 20


class Bundle:
    """Rows and files, the manifest last. Raises OSError."""

    def __init__(self, archive: zipfile.ZipFile, manifest: IO[bytes]) -> None:
        self._archive = archive
        self._manifest = manifest

    def add(self, members: Mapping[str, Any]) -> None:
        """One row; it may name files."""
        self._manifest.write(line(members))

    def add_file(self, name: str, content: bytes) -> str:
        """One file, of a kind that is compressed already; its name."""
        self._archive.writestr(name, content, zipfile.ZIP_STORED)
        return name


@contextmanager
def new_bundle(file: "IO[bytes] | str") -> Iterator[Bundle]:
    """A bundle in a file, whole when the context ends."""
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        tempfile.SpooledTemporaryFile(IN_MEMORY) as manifest,
    ):
        yield Bundle(archive, manifest)
        manifest.seek(0)
        with archive.open(MANIFEST, "w", force_zip64=True) as member:
            shutil.copyfileobj(manifest, member)


def line(members: Mapping[str, Any]) -> bytes:
    """One row of JSON Lines; float32 arrays come back to the bit."""
    return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
