"""Names of files in folders and archives: their kind by extension, their encoding, and the person
of a photo from its path. A layout is used only if it is unambiguous; otherwise the import ends
before its first row and shows examples."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from app.errors import LikenessError, UnsupportedImage
from app.importing.patterns import PERSON, PathPattern
from app.importing.source_options import PersonFrom, SourceOptions
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
        try:
            return raw.decode(self._encoding or "utf-8", "surrogateescape")
        except UnicodeError:  # some encodings can refuse bytes that have no surrogates
            return raw.decode("utf-8", "surrogateescape")


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


GUESSES = 10
# Names of folders that are probably not persons (in lower case).
GENERAL = frozenset({
    "camera", "data", "dataset", "dcim", "faces", "gallery", "image", "images", "img", "imgs",
    "jpeg", "jpg", "media", "new folder", "originals", "people", "persons", "photo", "photos",
    "pics", "picture", "pictures", "png", "raw", "test", "thumbnails", "thumbs", "train",
    "untitled folder", "uploads", "val", "validation",
})  # fmt: skip

# Years and dates are not persons either.
DATE = re.compile(r"(19|20)\d\d([-_. ]?\d\d){0,2}")

Folders = tuple[str, ...]


class AmbiguousLayout(ImportSourceError):
    """The persons of a source's photos cannot be determined."""

    code, title = "ambiguous_layout", "It is not clear which persons the photos show"


@dataclass(frozen=True, slots=True)
class Layout:
    """How the person of a photo is found. `root`: the parent folders of the folders of people."""

    by: PersonFrom | None = None
    pattern: PathPattern | None = None
    root: Folders = ()

    def person_of(self, path: PurePosixPath) -> str:
        """The person id of a photo, from its path in the source. Raises ImportSourceError."""
        if self.pattern is not None:
            return composed(self._matched(path))
        folders = path.parts[:-1]
        if not folders or ".." in folders:
            raise ImportSourceError("The photo lies in no folder that is named by a person.")
        if self.by is PersonFrom.FOLDER:
            return composed(folders[-1])
        if self.by is PersonFrom.TOP_FOLDER:
            return composed(folders[0])
        below = folders[len(self.root) :]
        if folders[: len(self.root)] != self.root or not below:
            raise ImportSourceError("The photo lies in no folder that is named by a person.")
        if len(below) > 1:
            raise ImportSourceError(
                "The photo is in a subfolder of a person's folder; --person-from top-folder "
                "accepts it."
            )
        return composed(below[0])

    def likely_person_of(self, path: PurePosixPath) -> str:
        """The person id to report for a file that cannot be imported: when a person is deleted,
        rows with the person's id are erased from reports. If the layout gives none, the outermost
        folder below `root`, or ''."""
        try:
            return self.person_of(path)
        except ImportSourceError:
            folders = path.parts[:-1]
            below = folders[len(self.root) :] if folders[: len(self.root)] == self.root else folders
            return composed(below[0]) if below else ""

    def _matched(self, path: PurePosixPath) -> str:
        assert self.pattern is not None, "there is one"
        found = self.pattern.person_of(str(path) if "/" in self.pattern.shown else path.name)
        if found is None:
            raise ImportSourceError(
                f"The name does not match the pattern {self.pattern.shown}; change one of them."
            )
        return found


def given_layout(options: SourceOptions, *, sidecars: bool = False) -> Layout | None:
    """The layout given in the options, or None. Raises ImportSourceError if the options ask for
    files beside photos and the source has no `sidecars`."""
    if options.pattern is not None:
        return Layout(pattern=PathPattern(options.pattern))
    if options.person_from not in (None, PersonFrom.FOLDER, PersonFrom.TOP_FOLDER) and not sidecars:
        raise ImportSourceError(
            f"--person-from {options.person_from} is for tars only; use folder or top-folder."
        )
    if options.person_from is not None:
        return Layout(options.person_from)
    return None


class Survey:
    """Looks at the paths of all photos of a source before its first row."""

    def __init__(self) -> None:
        self.folders: set[Folders] = set()
        self.first: list[PurePosixPath] = []
        self.photos = 0

    def add(self, path: PurePosixPath) -> None:
        """Count one photo."""
        self.photos += 1
        self.folders.add(path.parts[:-1])
        if len(self.first) < GUESSES:
            self.first.append(path)

    def layout(self, source: str) -> Layout:
        """The layout, if it is one folder for each person. Raises AmbiguousLayout."""
        if self.folders == {()}:
            raise AmbiguousLayout(
                f"{source} has photos but no folders of people; give a pattern that says where the "
                f"person's id is in their names, such as --pattern '{PERSON}_*.jpg'."
            )
        root = common(self.folders)
        if not self._is_clear(root):
            raise self.unclear(source)
        return Layout(root=root)

    def _is_clear(self, root: Folders) -> bool:
        below = {folders[len(root) :] for folders in self.folders}
        if root and (() in below or self.folders == {(*root, *max(below))}):
            return False  # either a person's folder with subfolders, or a parent of people
        people = {folders[0] for folders in below if folders}
        deeper = {folders[0] for folders in below if len(folders) > 1}
        holders = {folders[0] for folders in below if len(folders) == 1}
        return deeper <= holders and not any(map(_is_general, people))

    def unclear(self, source: str, beside: Sequence[PersonFrom] = ()) -> AmbiguousLayout:
        """The error that ends the import. `beside`: kinds of files that may name the person."""
        guesses = [
            f"  {printable(str(path))} → {printable(path.parts[-2])}"
            for path in self.first
            if len(path.parts) > 1
        ] or [f"  {printable(str(path))} → ?" for path in self.first]
        top = next((path.parts[0] for path in self.first if len(path.parts) > 2), None)
        ways = [f"--person-from {PersonFrom.FOLDER} (as above)"]
        if top is not None:
            ways.append(f"--person-from {PersonFrom.TOP_FOLDER} ({printable(top)}, …)")
        ways += [f"--person-from {one} (the .{one} beside a photo)" for one in beside]
        ways.append(f"--pattern '{PERSON}/**' or another")
        return AmbiguousLayout(
            f"It is not clear which persons the photos of {source} show; nothing was imported. By "
            "the folder that contains each photo they would be:\n"
            + "\n".join(guesses)
            + f"\nRun the import again with one of these options: {', '.join(ways)}."
        )


def _is_general(name: str) -> bool:
    return name.lower() in GENERAL or DATE.fullmatch(name) is not None


def common(folders: "set[Folders]") -> Folders:
    """The parent folders of all folders of people: the common beginning of the paths."""
    if len(folders) == 1:
        return next(iter(folders))[:-1]
    first, last = min(folders, default=()), max(folders, default=())
    length = 0
    while length < min(len(first), len(last)) and first[length] == last[length]:
        length += 1
    return first[:length]
