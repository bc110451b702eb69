"""Names of files in folders and archives: their kind by extension, and their encoding."""

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from app.errors import LikenessError, UnsupportedImage
from app.importing.source_rows import ImportSourceError, NotAPhoto, is_image, printable

# Files and folders that operating systems and network drives create (in lower case).
JUNK = frozenset({
    "@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot",  # Synology
    "@recycle", "@recently-snapshot",  # QNAP
    "__macosx", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
    "ehthumbs.db", "desktop.ini",
})  # fmt: skip
# Photos that are not decoded.
OTHER_PHOTOS = frozenset({
    ".arw", ".cr2", ".cr3", ".dng", ".heics", ".jp2", ".j2k", ".jpx", ".jxl", ".nef", ".orf",
    ".psd", ".raf", ".raw", ".rw2", ".svg",
})  # fmt: skip
ARCHIVES = frozenset({
    ".7z", ".bz2", ".gz", ".rar", ".tar", ".tbz2", ".tgz", ".txz", ".xz", ".zip", ".zst",
})  # fmt: skip


def is_junk(path: PurePosixPath) -> bool:
    """Whether it is hidden or created by a system, or in such a folder."""
    return any(
        part.lower() in JUNK or (part.startswith(".") and part != "..") for part in path.parts
    )


def parts_of(name: str) -> PurePosixPath:
    """A path within an archive, without `.` and a leading `/`."""
    return PurePosixPath(name.lstrip("/"))


def problem_of(path: PurePosixPath) -> LikenessError | None:
    """Why a file cannot be imported as a photo, by its extension; None if it can."""
    name, suffix = printable(path.name), path.suffix.lower()
    if is_image(path.name):
        return None
    if suffix in OTHER_PHOTOS:
        return UnsupportedImage(f"{name} has a format that is not supported; convert it to JPEG.")
    if suffix in ARCHIVES:
        return ImportSourceError(
            f"{name} is an archive within the source and is not opened; import it separately."
        )
    if not suffix:
        return NotAPhoto(f"{name} has no extension that says it is a photo, such as .jpg.")
    return NotAPhoto(f"{name} does not have the extension of a photo.")


def composed(text: str) -> str:
    """The text in Unicode's Form C, so that names which look the same are equal."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class NameDecoder:
    """Decodes the names of one source: all as UTF-8, or all in the given encoding."""

    def __init__(self, names: Iterable[bytes], encoding: str | None) -> None:
        """`names`: those that are not known to be UTF-8."""
        self._encoding = encoding if any(not _is_utf8(name) for name in names) else None

    def text(self, raw: bytes) -> str:
        """The name; bytes that cannot be decoded become surrogates."""
        return raw.decode(self._encoding or "utf-8", "surrogateescape")


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def check_text(name: str) -> None:
    """Raise ImportSourceError for a name with bytes that could not be decoded."""
    if not _is_text(name):
        raise ImportSourceError(
            f"The name {printable(name)} is not UTF-8; give its encoding, such as --names-encoding "
            "cp437 or cp850 (zips of Windows), cp1252 or gbk."
        )


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
