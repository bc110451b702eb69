"""The rules for metadata of persons, faces and collections, and how metadata that an earlier
version stored against these rules is read."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from app.errors import InvalidRequest
from app.store.identifiers import describe, not_storable, storable
from app.types import JsonObject

MAX_BYTES = 16_384  # as JSON in UTF-8
MAX_DEPTH = 32  # nested objects and arrays, including the outermost one
MAX_MEMBERS = 1_000  # of one object
MAX_FILTER_MEMBERS = 32
MAX_INTEGER = 2**53 - 1  # JavaScript and other JSON readers round larger ones
_MAX_PATH = 100
_END = object()
# What matters of a text to see whether it has a long number or an exponent: digits and letters e.
# A regular expression takes fifteen times as long, and keeps other threads waiting.
_DIGITS_AND_E = bytes.maketrans(b"123456789E", b"000000000e")
_LONG_NUMBER, _EXPONENT = b"0" * 16, b"0e"


# Names of members and indexes of items that lead to a value, from the outermost one.
MemberPath = tuple[Any, ...]


class CorrectedMetadata(dict[str, Any]):
    """A corrected copy of stored metadata that breaks the rules, with the `problem` (to be read
    after the field's name) and the `original` JSON text in the database."""

    def __init__(self, members: Mapping[str, Any], problem: str, original: str) -> None:
        super().__init__(members)
        self.problem = problem
        self.original = original


def problem_of(metadata: JsonObject, field: str = "metadata") -> str | None:
    """A sentence that says why stored metadata was corrected; None if it was not."""
    return f"{field}{metadata.problem}" if isinstance(metadata, CorrectedMetadata) else None


def check_metadata(value: Any, field: str = "metadata") -> JsonObject:
    """The value, unchanged. Raises InvalidRequest unless it is a JSON object within the limits,
    with only texts and numbers that every database and every JSON reader can represent."""
    problem = find_problem(value)
    if problem is not None:
        raise InvalidRequest(f"{field}{problem}")
    members: JsonObject = value
    return members


def check_filter(value: Any) -> JsonObject:
    """The value, checked as a filter of persons. Raises InvalidRequest."""
    if isinstance(value, dict) and len(value) > MAX_FILTER_MEMBERS:
        raise InvalidRequest(
            f"filter must not have more than {MAX_FILTER_MEMBERS} members; this one has "
            f"{len(value):,}."
        )
    return check_metadata(value, "filter")


def find_problem(value: Any) -> str | None:
    """What is wrong with metadata, to be read after the field's name: '.team.name must …'."""
    if not isinstance(value, dict):
        return " must be a JSON object."
    for count, (path, depth, one) in enumerate(_values(value)):
        if count > MAX_BYTES:
            return f" must not be longer than {MAX_BYTES:,} bytes as JSON."
        problem = _problem_of_value(one, depth)
        if problem is not None:
            return f"{_shown(path)} {problem}"
    # Only now is it certain that it can be written as JSON. The length that counts is that of
    # `json`, which is slow and writes a space after each comma and colon: twice as much at most.
    if 2 * len(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)) <= MAX_BYTES:
        return None
    size = len(json.dumps(value, ensure_ascii=False).encode())
    if size > MAX_BYTES:
        return f" must not be longer than {MAX_BYTES:,} bytes as JSON; it has {size:,}."
    return None


def _values(value: dict[Any, Any]) -> Iterator[tuple[MemberPath, int, Any]]:
    """Every value with its path and its depth, down to one level below the limit; nothing is
    copied."""
    yield (), 1, value
    waiting: list[tuple[MemberPath, Iterator[tuple[Any, Any]]]] = [((), iter(value.items()))]
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


def _shown(path: MemberPath) -> str:
    """A path as text, such as .team.names[3], cut if it is long."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step[:_MAX_PATH]}" for step in path]
    shown = "".join(steps)[:_MAX_PATH]
    return shown if shown.isprintable() else ascii(shown)[1:-1]


def _problem_of_value(value: Any, depth: int) -> str | None:
    if isinstance(value, dict | list):
        return _problem_of_container(value, depth)
    if isinstance(value, str):
        return _problem_of_text(value, "contains")
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else "must be a finite number."
    if isinstance(value, int):
        if abs(value) <= MAX_INTEGER:
            return None
        return f"is an integer beyond ±{MAX_INTEGER}, which JSON readers round; send it as text."
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
            return f"has a member whose name is not text but {type(name).__name__}."
        problem = _problem_of_text(name, "has a member whose name contains")
        if problem is not None:
            return problem
    return None


def _problem_of_text(text: str, holds: str) -> str | None:
    if len(text) > MAX_BYTES:
        return f"{holds} {len(text):,} characters; all metadata may have {MAX_BYTES:,} bytes."
    index = not_storable(text)
    if index is None:
        return None
    return f"{holds} {describe(text, index)}, which cannot be stored."


# --- what is stored already -------------------------------------------------------------------


def read_stored(text: str | bytes) -> dict[str, Any]:
    """Metadata from the JSON text in a database; CorrectedMetadata if it breaks the rules."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    if _is_plain(text):
        try:
            members = orjson.loads(text)
        except orjson.JSONDecodeError:
            members = None
        if isinstance(members, dict):
            return members
    return _read_carefully(text)


def _is_plain(text: str) -> bool:
    """A quick check that is true only if the parser itself finds every problem: the text is short
    and shallow, has few members, no escaped characters, and no numbers that are long or have an
    exponent."""
    if len(text) > MAX_BYTES or "\\u" in text or text.count(":") > MAX_MEMBERS:
        return False
    if text.count("{") + text.count("[") > MAX_DEPTH:
        return False
    form = text.encode(errors="replace").translate(_DIGITS_AND_E)
    return _LONG_NUMBER not in form and _EXPONENT not in form


def _read_carefully(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError:
        return CorrectedMetadata({}, " is nested too deeply to be read.", text)
    except ValueError:
        return CorrectedMetadata({}, " is not JSON, or has a number with too many digits.", text)
    problem = find_problem(value)
    if problem is None:
        members: dict[str, Any] = value
        return members
    return CorrectedMetadata(as_storable(value), problem, text)


def as_storable(value: Any) -> dict[str, Any]:
    """A corrected copy that keeps to the rules: U+FFFD instead of characters that cannot be stored;
    null instead of numbers that are not finite and values nested too deeply; text instead of long
    integers; only the first members of a large object; without the longest members until it
    fits."""
    members: dict[str, Any] = _storable(value, 1) if isinstance(value, dict) else {}
    sizes = {k: len(json.dumps({k: v}, ensure_ascii=False).encode()) for k, v in members.items()}
    total = sum(sizes.values())  # the braces of each member count for the separators
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
