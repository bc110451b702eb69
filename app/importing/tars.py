"""Reads tars with any compression: folders of people, or WebDataset samples."""

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from app.errors import LikenessError
from app.importing.layouts import (
    AmbiguousLayout,
    Layout,
    NameDecoder,
    Survey,
    check_text,
    given_layout,
    is_junk,
    parts_of,
    problem_of,
)
from app.importing.source_options import PersonFrom, SourceOptions
from app.importing.source_rows import (
    ImportSourceError,
    NotAPhoto,
    Row,
    UnreadableFile,
    is_image,
    person_text,
    printable,
)
from app.importing.tables import PERSON, is_manifest
from app.importing.unpacking import TarStream

# Extensions of files with the same name as a photo in a WebDataset shard.
SIDECARS = {".json": PersonFrom.JSON, ".cls": PersonFrom.CLS, ".txt": PersonFrom.TXT}
MAX_SIDECAR = 1_000_000
# Photos named dr.no.1.jpg, dr.no.2.jpg, … look like one sample; this limits those in memory.
MAX_PHOTOS_A_SAMPLE = 32
BYTES_A_SAMPLE = 64 << 20
# Samples of a stream that are examined before its first row, as it can be read only once.
SAMPLES_AHEAD = 64


@dataclass(slots=True)
class _File:
    """A member that is not a sidecar: a photo, or a file to report."""

    path: PurePosixPath
    data: bytes = b""
    problem: LikenessError | None = None


@dataclass(slots=True)
class _Sample:
    """Files with one name in a shard: photos, and the sidecars that describe them."""

    key: PurePosixPath = field(default_factory=PurePosixPath)
    files: list[_File] = field(default_factory=list)
    said: dict[PersonFrom, str] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    problem: ImportSourceError | None = None
    beside: list[PurePosixPath] = field(default_factory=list)
    size: int = 0

    def is_full(self) -> bool:
        return len(self.files) >= MAX_PHOTOS_A_SAMPLE or self.size >= BYTES_A_SAMPLE

    def after(self) -> "_Sample":
        """The next part of the same sample."""
        return _Sample(self.key, said=self.said, metadata=self.metadata, problem=self.problem)

    def named(self, by: PersonFrom | None) -> str | None:
        """The person id from the sidecar `by`, or from `.json` or `.cls` if that is None."""
        kinds = (PersonFrom.JSON, PersonFrom.CLS) if by is None else (by,)
        return next((self.said[kind] for kind in kinds if kind in self.said), None)


def tar_rows(file: Path, options: SourceOptions) -> Iterator[Row]:
    """<…>/<person_id>/<photo>, or WebDataset samples: files of one name that follow one another,
    where `.json` holds person_id and metadata, or `.cls` the person alone. Links are not followed.
    Raises ImportSourceError."""
    layout = given_layout(options, sidecars=True)
    size = file.stat().st_size
    if layout is None:
        with file.open("rb") as opened:
            samples = _samples(opened, file.name, options, size, contents=False)
            layout = _layout(samples, file.name)
    with file.open("rb") as opened:
        for sample in _samples(opened, file.name, options, size):
            yield from _rows_of(sample, file.name, layout)


def tar_stream_rows(file: BinaryIO, name: str, options: SourceOptions) -> Iterator[Row]:
    """The same for a stream, whose layout is determined from its beginning."""
    samples = _samples(file, name, options)
    first = list(itertools.islice(samples, SAMPLES_AHEAD))
    layout = given_layout(options, sidecars=True) or _layout(first, name)
    for sample in itertools.chain(first, samples):
        yield from _rows_of(sample, name, layout)


def _layout(samples: Iterable[_Sample], name: str) -> Layout:
    """Raises AmbiguousLayout, and ImportSourceError for a tar with a table."""
    survey, said, text = Survey(), 0, 0
    for sample in samples:
        for one in sample.files:
            if is_manifest(one.path.name):
                raise ImportSourceError(
                    f"{name} has a table, {one.path}, and tables are read in zips only: pack it as "
                    "a zip, or unpack it and import the table."
                )
            if one.problem is None:
                survey.add(one.path)
                said += sample.named(None) is not None or sample.problem is not None
                text += PersonFrom.TXT in sample.said
    if said == survey.photos:  # even if there are none
        return Layout(PersonFrom.JSON)
    beside = [PersonFrom.JSON, PersonFrom.CLS] * bool(said) + [PersonFrom.TXT] * bool(text)
    if said or (text and len(survey.folders) == 1):
        raise survey.unclear(name, beside)
    try:
        return survey.layout(name)
    except AmbiguousLayout:
        if beside:
            raise survey.unclear(name, beside) from None
        raise


def _samples(
    file: BinaryIO,
    name: str,
    options: SourceOptions,
    size: int | None = None,
    *,
    contents: bool = True,
) -> Iterator[_Sample]:
    """Samples: successive files with the same name; photos without their bytes if so asked. `size`:
    the bytes of a file that is no stream."""
    sample = _Sample()
    stream = TarStream(file, name, options.max_members, size)
    decoder = NameDecoder([b"\xff"], options.names_encoding)
    for member in stream.members():
        path = parts_of(_text(member.name, decoder))
        if member.isdir() or not path.parts or is_junk(path):
            continue
        # WebDataset: the key ends at the first dot of the file's name.
        key = path.parent / path.name.split(".")[0]
        if key != sample.key or sample.is_full():
            yield sample
            sample = sample.after() if key == sample.key else _Sample(key)
        suffix = path.suffix.lower()
        regular = member.isfile() and member.sparse is None
        if suffix in SIDECARS and regular and not is_manifest(path.name):
            sample.beside.append(path)
            _add_sidecar(sample, SIDECARS[suffix], stream, member)
        else:
            one = _read(stream, member, path, options.max_bytes + 1 if contents else 0)
            sample.size += len(one.data)
            sample.files.append(one)
    yield sample


def _text(name: str, decoder: NameDecoder) -> str:
    raw = name.encode("utf-8", "surrogateescape")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return decoder.text(raw)


def _read(stream: TarStream, member: tarfile.TarInfo, path: PurePosixPath, most: int) -> _File:
    """A photo, or a file with the reason why it is not one."""
    problem = _member_problem(member, path)
    if problem is not None or not most:
        return _File(path, problem=problem)
    return _File(path, stream.content(member, most))


def _member_problem(member: tarfile.TarInfo, path: PurePosixPath) -> LikenessError | None:
    try:
        check_text(str(path))
    except ImportSourceError as problem:
        return problem
    if not member.isfile() or member.sparse is not None:
        return UnreadableFile("It is a link, a device or a sparse file, not a regular file.")
    return problem_of(path)


def _add_sidecar(
    sample: _Sample, kind: PersonFrom, stream: TarStream, member: tarfile.TarInfo
) -> None:
    try:
        content = stream.content(member, MAX_SIDECAR + 1)
        if len(content) > MAX_SIDECAR:
            raise ValueError(f"it has more than {MAX_SIDECAR:,} bytes")
        text = content.decode("utf-8").strip()
        if kind is not PersonFrom.JSON:
            sample.said[kind] = text
            return
        members = json.loads(text)
    except (ValueError, RecursionError) as error:
        if kind is not PersonFrom.TXT:
            sample.problem = ImportSourceError(f"The .{kind} of the photo cannot be read: {error}.")
        return
    if not isinstance(members, dict):
        sample.problem = ImportSourceError("The .json of the photo is not a JSON object.")
        return
    if PERSON in members:
        try:
            sample.said[kind] = person_text(members.pop(PERSON))
        except ImportSourceError as problem:
            sample.problem = problem
        metadata = members.pop("metadata", {})
        sample.metadata = {**members, **(metadata if isinstance(metadata, dict) else {})}


def _rows_of(sample: _Sample, archive: str, layout: Layout) -> Iterator[Row]:
    for path in sample.beside if not sample.files else ():
        alone = NotAPhoto(f"{printable(path.name)} is not a photo, and no photo has its name.")
        yield Row(f"{archive}/{path}", layout.likely_person_of(path), problem=alone)
    for one in sample.files:
        place = f"{archive}/{one.path}"
        problem = one.problem or (sample.problem if is_image(one.path.name) else None)
        person_id = sample.named(None) or layout.likely_person_of(one.path)
        if problem is not None:
            yield Row(place, person_id, problem=problem)
            continue
        read = io.BytesIO(one.data).getvalue
        try:
            person_id = _person(sample, one, layout)
            yield Row(place, person_id, read, metadata=sample.metadata or None)
        except ImportSourceError as problem:
            yield Row(place, person_id, problem=problem)


def _person(sample: _Sample, one: _File, layout: Layout) -> str:
    """Raises ImportSourceError."""
    if layout.by not in SIDECARS.values():
        return layout.person_of(one.path)
    # Samples of one shard may differ in this.
    by = None if layout.by is PersonFrom.JSON else layout.by
    person_id = sample.named(by)
    if person_id is None:
        raise ImportSourceError(
            f"There is no .{layout.by} beside the photo that can be read and names its person."
        )
    return person_id
