"""Names of files in folders and archives: what they say of their content, and how they are
written."""

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from app.errors import LikenessError, UnsupportedImage
from app.importing.rows import ImportSourceError, NotAPhoto, is_image, printable

# What systems and network drives put beside photos (in lower case).
JUNK = frozenset({
    "@eadir", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "system volume information",
    "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini",
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
    """Whether it is hidden, or the system's own, or in such a folder."""
    return any(
        part.lower() in JUNK or (part.startswith(".") and part != "..") for part in path.parts
    )


def parts_of(name: str) -> PurePosixPath:
    """A path within an archive, without `.` and a leading `/`."""
    return PurePosixPath(name.lstrip("/"))


def problem_of(path: PurePosixPath) -> LikenessError | None:
    """Why a file is no row with a photo; None where its name says that it is one."""
    name, suffix = printable(path.name), path.suffix.lower()
    if is_image(path.name):
        return None
    if suffix in OTHER_PHOTOS:
        return UnsupportedImage(f"{name} is of a kind that is not decoded; convert it to JPEG.")
    if suffix in ARCHIVES:
        return ImportSourceError(f"{name} is an archive, which is not opened; import it by itself.")
    if not suffix:
        return NotAPhoto(f"{name} has no extension that says it is a photo, such as .jpg.")
    return NotAPhoto(f"{name} is no photo by its extension.")


def composed(text: str) -> str:
    """In Unicode's form C: names that look the same are the same."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class NameDecoder:
    """Names of one source as text: all of them UTF-8, or all of the encoding that was given."""

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
            f"The name {printable(name)} is not UTF-8; --names-encoding says what it is, as gbk or "
            "cp1252."
        )


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
