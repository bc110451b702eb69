"""Metadata: what may be kept beside a person, a face or a collection, and how what an earlier
version stored is read all the same."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from app.errors import InvalidRequest
from app.gallery.characters import describe, not_storable, storable
from app.types import JsonObject

MAX_BYTES = 16_384  # as JSON in UTF-8
MAX_DEPTH = 32  # objects and arrays within one another, the outermost counts
MAX_MEMBERS = 1_000  # of one object
MAX_FILTER_MEMBERS = 32
MAX_INTEGER = 2**53 - 1  # beyond, JavaScript and other readers of JSON round it
_MAX_PATH = 100
_END = object()
_LONG_NUMBER = re.compile(r"[0-9]{16}|[0-9][eE]")


# Names of members and numbers of items, from the outermost on.
Path = tuple[Any, ...]


class StoredAmiss(dict[str, Any]):
    """Metadata that a database holds and this version would not store: a copy that it would, the
    `problem` to be read after its name, and the `original`, the JSON text that is stored."""

    def __init__(self, members: Mapping[str, Any], problem: str, original: str) -> None:
        super().__init__(members)
        self.problem = problem
        self.original = original


def problem_of(metadata: JsonObject, field: str = "metadata") -> str | None:
    """Why stored metadata is not returned as it is stored, as a sentence; None where it is."""
    return f"{field}{metadata.problem}" if isinstance(metadata, StoredAmiss) else None


def check_metadata(value: Any, field: str = "metadata") -> JsonObject:
    """The value, which is going to be stored or compared with what is. Raises InvalidRequest unless
    it is a JSON object within the limits, of text and numbers that every database and every reader
    of JSON can carry."""
    problem = find_problem(value)
    if problem is not None:
        raise InvalidRequest(f"{field}{problem}")
    members: JsonObject = value
    return members


def check_filter(value: Any) -> JsonObject:
    """The value, by whose members persons are going to be chosen. Raises InvalidRequest."""
    if isinstance(value, dict) and len(value) > MAX_FILTER_MEMBERS:
        raise InvalidRequest(
            f"filter must not have more than {MAX_FILTER_MEMBERS} members; it has {len(value):,}."
        )
    return check_metadata(value, "filter")


def find_problem(value: Any) -> str | None:
    """What is wrong with metadata, to be read after its name: '.team.name must …'."""
    if not isinstance(value, dict):
        return " must be a JSON object."
    for count, (path, depth, one) in enumerate(_values(value)):
        if count > MAX_BYTES:
            return f" must not be longer than {MAX_BYTES:,} bytes as JSON."
        problem = _problem_of_value(one, depth)
        if problem is not None:
            return f"{_shown(path)} {problem}"
    # Now that it is shallow and whole it can be written.
    size = len(json.dumps(value, ensure_ascii=False).encode())
    if size > MAX_BYTES:
        return f" must not be longer than {MAX_BYTES:,} bytes as JSON; it has {size:,}."
    return None


def _values(value: dict[Any, Any]) -> Iterator[tuple[Path, int, Any]]:
    """Every value with the names and numbers that lead to it and its depth. What lies deeper than
    one beyond the limit is not looked at, and nothing is copied."""
    yield (), 1, value
    waiting: list[tuple[Path, Iterator[tuple[Any, Any]]]] = [((), iter(value.items()))]
    while waiting:
        path, members = waiting[-1]
        name, one = next(members, (None, _END))
        if one is _END:
            waiting.pop()
            continue
        here = (*path, name)
        yield here, len(here) + 1, one
        if isinstance(one, dict) and len(here) < MAX_DEPTH:
            waiting.append((here, iter(one.items())))
        elif isinstance(one, list) and len(here) < MAX_DEPTH:
            waiting.append((here, iter(enumerate(one))))


def _shown(path: Path) -> str:
    """As .team.names[3], cut where it is long."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step[:_MAX_PATH]}" for step in path]
    shown = "".join(steps)[:_MAX_PATH]
    return shown if shown.isprintable() else ascii(shown)[1:-1]


def _problem_of_value(value: Any, depth: int) -> str | None:
    if isinstance(value, dict | list):
        return _problem_of_container(value, depth)
    if isinstance(value, str):
        return _problem_of_text(value, "holds")
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else "must be a finite number."
    if isinstance(value, int):
        if abs(value) <= MAX_INTEGER:
            return None
        return f"is an integer beyond ±{MAX_INTEGER}, which readers of JSON round; send it as text."
    return f"is of the type {type(value).__name__}, which JSON does not have."


def _problem_of_container(value: "dict[Any, Any] | list[Any]", depth: int) -> str | None:
    if depth > MAX_DEPTH:
        return f"is nested more than {MAX_DEPTH} deep."
    if isinstance(value, list):
        return None
    if len(value) > MAX_MEMBERS:
        return f"must not have more than {MAX_MEMBERS:,} members; it has {len(value):,}."
    for name in value:
        if not isinstance(name, str):
            return f"has a member whose name is no text but {type(name).__name__}."
        problem = _problem_of_text(name, "has a member whose name holds")
        if problem is not None:
            return problem
    return None


def _problem_of_text(text: str, holds: str) -> str | None:
    if len(text) > MAX_BYTES:
        return f"{holds} {len(text):,} characters; all metadata has at most {MAX_BYTES:,} bytes."
    index = not_storable(text)
    if index is None:
        return None
    return f"{holds} {describe(text, index)}, which cannot be stored."


# --- what is stored already -------------------------------------------------------------------


def read_stored(text: str | bytes) -> dict[str, Any]:
    """Metadata from the JSON text that a database holds; StoredAmiss where it breaks the rule."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    if _is_plain(text):
        try:
            members = orjson.loads(text)
        except orjson.JSONDecodeError:
            members = None
        if isinstance(members, dict) and len(members) <= MAX_MEMBERS:
            return members
    return _read_carefully(text)


def _is_plain(text: str) -> bool:
    """Whether a quick look says that nothing can be wrong but what the parser finds itself: short,
    shallow, without escaped characters and without numbers that are long or have an exponent."""
    return (
        len(text) <= MAX_BYTES
        and "\\u" not in text
        and text.count("{") + text.count("[") <= MAX_DEPTH
        and not _LONG_NUMBER.search(text)
    )


def _read_carefully(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        return StoredAmiss({}, " is nested too deeply to be read.", text)
    except ValueError:
        return StoredAmiss({}, " is no JSON, or has a number of too many digits.", text)
    problem = find_problem(value)
    if problem is None:
        members: dict[str, Any] = value
        return members
    return StoredAmiss(as_storable(value), problem, text)


def as_storable(value: Any) -> dict[str, Any]:
    """A copy within the rule, as near to the value as can be: characters that cannot be stored are
    U+FFFD, numbers that are not finite and what is nested too deeply null, long integers text; an
    object keeps its first members, and the longest members are left out until the rest fits."""
    members: dict[str, Any] = _storable(value, 1) if isinstance(value, dict) else {}
    sizes = {k: len(json.dumps({k: v}, ensure_ascii=False).encode()) for k, v in members.items()}
    total = sum(sizes.values())  # the braces of each are the separators of all
    for name in sorted(sizes, key=lambda name: sizes[name], reverse=True):
        if total <= MAX_BYTES:
            break
        total -= sizes[name]
        del members[name]
    return members


def _storable(value: Any, depth: int) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if abs(value) <= MAX_INTEGER else str(value)
    if depth > MAX_DEPTH:
        return None
    if isinstance(value, list):
        return [_storable(one, depth + 1) for one in value]
    if isinstance(value, dict):
        first = list(value.items())[:MAX_MEMBERS]
        return {_storable(str(k), depth): _storable(v, depth + 1) for k, v in first}
    return None
