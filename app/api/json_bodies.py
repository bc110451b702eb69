"""Parses JSON from clients with a bounded cost, decodes the photos in it (base64, alone or in a
data URI: RFC 4648, RFC 2397), and makes routes of FastAPI read it so.

A JSON parser holds Python's lock until it is done, also on a separate thread: 63 MB of
base64 took 200 to 500 ms, a million empty lists 640 ms, on an AMD EPYC. So long strings (photos)
are cut out before parsing, and the number of other values is limited.

Base64 is decoded in pieces, because each of the functions used holds Python's lock until
it is done: replacing the escapes in a text of 26 MB at once took 120 ms.
"""

import asyncio
import binascii
import re
import secrets
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor
from typing import Any

import numpy as np
import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.api.bodies import body_of
from app.errors import InvalidRequest

KIB = 1024
# Bodies up to this size are parsed on the event loop: a thread would take longer.
SMALL = 64 * KIB
# A string from this length on is cut out.
LONG = 16 * KIB
# 512 embeddings of 512 numbers: 25 ms.
MAX_VALUES = 262_144
MAX_STRINGS = 100_000
MAX_DEPTH = 64
# Of one object. Each that no field takes would be a finding of its own.
MAX_MEMBERS = 2_048
# Bytes that are examined before other threads can run.
SLICE = 1024 * KIB
# Replaces a string that was cut out; no client can know it.
_MARK = secrets.token_hex(16)

Raw = bytes | bytearray

# So many digits may be more than 64 bits, and more than LONGEST_INTEGER characters are.
LONG_INTEGER, LONGEST_INTEGER = 19, 20
# Any digit becomes 0, and what can be before an integer a comma. The digits of a fraction follow a
# point.
_DIGITS = bytes.maketrans(b"123456789 \t\r\n:[-", b"000000000,,,,,,,")
_LONG_RUN = b"," + b"0" * LONG_INTEGER
_RUN = re.compile(rb"[0-9]+")


class LongText:
    """A string of JSON as it was sent, between its quotes."""

    __slots__ = ("raw",)

    def __init__(self, raw: memoryview) -> None:
        self.raw = raw


def parse_json(body: Raw | str) -> Any:
    """The value of a JSON text without long strings. Raises ValueError."""
    value, long = parse_with_long_texts(body)
    if long:
        raise _long_text()
    return value


def parse_with_long_texts(body: Raw | str) -> tuple[Any, "LongTexts"]:
    """The value of a JSON text without its long strings, and those. Raises ValueError."""
    raw = body.encode(errors="surrogatepass") if isinstance(body, str) else body
    rest, texts = _cut(raw) if len(raw) > LONG else (raw, [])
    _check_values(rest)
    try:
        value = orjson.loads(rest)
    except ValueError as error:
        raise ValueError("The body is not valid JSON.") from error
    if _depth_at_most(rest) > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"The JSON is nested more than {MAX_DEPTH} deep; nest it less.")
    _check_integers(rest, value)
    if rest.count(b":") > MAX_MEMBERS and _has_large_object(value):
        raise ValueError(f"An object has more than {MAX_MEMBERS:,} members; send fewer.")
    return value, LongTexts(texts)


class LongTexts:
    """The long strings of a body; each can be taken once."""

    def __init__(self, texts: list[LongText]) -> None:
        self._texts: dict[str, LongText] = {f"{_MARK}{n}": one for n, one in enumerate(texts)}

    def __len__(self) -> int:
        return len(self._texts)

    def take(self, value: Any) -> Any:
        """The long string that a placeholder replaces; any other value unchanged."""
        return self._texts.pop(value, value) if isinstance(value, str) else value

    def check_all_taken(self) -> None:
        """Raises ValueError if a long string is where only short ones are allowed."""
        if self._texts:
            raise _long_text()


def _long_text() -> ValueError:
    return ValueError(f"A string that is not a photo has more than {LONG:,} bytes; shorten it.")


def _cut(body: Raw) -> tuple[Raw, list[LongText]]:
    """The body with placeholders instead of its long strings."""
    view, start = memoryview(body), 0
    kept: list[memoryview | bytes] = []
    texts: list[LongText] = []
    for begin, end in _strings(body):
        if end - begin > LONG:
            kept += [view[start:begin], f'"{_MARK}{len(texts)}"'.encode()]
            texts.append(LongText(view[begin + 1 : end]))
            start = end + 1
    # Copies are made only of what is needed: one of 60 MB takes as long as the loop may be late.
    return (b"".join([*kept, view[start:]]), texts) if texts else (body, texts)


def _strings(body: Raw) -> Iterator[tuple[int, int]]:
    """Where each string begins and ends: its two quotes."""
    left = MAX_STRINGS
    begin = body.find(b'"')
    while begin >= 0:
        end = body.find(b'"', begin + 1)
        while end > 0 and _is_escaped(body, end):
            left -= 1
            end = body.find(b'"', end + 1) if left > 0 else -1
        left -= 1
        if left < 0:
            raise _too_many()
        if end < 0:
            raise ValueError("The body is not valid JSON: a string has no closing quote.")
        yield begin, end
        begin = body.find(b'"', end + 1)


def _is_escaped(body: Raw, quote: int) -> bool:
    """Whether an odd number of backslashes precedes the quote. More than 64 in a row are refused,
    because counting long runs repeatedly would be slow."""
    count = 0
    while body[quote - 1 - count] == ord("\\"):
        count += 1
        if count > 64:
            raise ValueError("The JSON has more than 64 backslashes in a row; remove some.")
    return count % 2 == 1


def _check_values(body: bytes | bytearray) -> None:
    """Raises ValueError for too many values. Each but the first follows one of `,[{`; those
    within strings count as well, which metadata is too short for."""
    values = 0
    for piece in _slices(body):
        values += sum(int(np.count_nonzero(piece == ord(one))) for one in ",[{")
        if values > MAX_VALUES:
            raise _too_many()


def _check_integers(body: Raw, value: Any) -> None:
    """Raises ValueError for an integer of more than 64 bits, which orjson rounds to a float: two
    different numbers would become one. `value`: what the body, a JSON text, was parsed to."""
    found = {float(text): text for text in _long_integers(body)}
    # What looks like one may be in a text.
    if found and (number := next((one for one in _floats_in(value) if one in found), None)):
        raise ValueError(f"The integer {found[number]} has more than 64 bits; send it as a text.")


def _long_integers(body: Raw) -> Iterator[str]:
    """What may be an integer of more than 64 bits in the body, or is in one of its texts."""
    for number, piece in enumerate(_slices(body, len(_LONG_RUN))):
        digits = piece.tobytes().translate(_DIGITS)
        at = digits.find(_LONG_RUN)
        while at >= 0:
            begin = number * SLICE + at + 1
            run = _RUN.match(body, begin)
            if run and body[run.end() : run.end() + 1] not in (b".", b"e", b"E"):
                sign = "-" if body[begin - 1 : begin] == b"-" else ""
                text = f"{sign}{run[0].decode()}"
                if len(text) > LONGEST_INTEGER or not -(2**63) <= int(text) < 2**64:
                    yield text
            at = digits.find(_LONG_RUN, at + 1)


def _floats_in(value: Any) -> Iterator[float]:
    level = [[value]]
    while level:
        yield from (one for items in level for one in _items(items) if isinstance(one, float))
        level = _containers_in(level)


def _items(container: Any) -> Any:
    return container.values() if isinstance(container, dict) else container


def _too_many() -> ValueError:
    return ValueError(
        f"The JSON has more than {MAX_VALUES:,} values or {MAX_STRINGS:,} strings; split the call."
    )


def _slices(body: Raw, overlap: int = 0) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    array = np.frombuffer(body, np.uint8)
    for start in range(0, len(array), SLICE):
        yield array[start : start + SLICE + overlap]


def _depth_at_most(body: bytes | bytearray) -> int:
    """An upper bound of the nesting depth: brackets within strings count too."""
    deepest = depth = 0
    for piece in _slices(body):
        steps = np.zeros(len(piece), np.int32)
        steps[(piece == ord("[")) | (piece == ord("{"))] = 1
        steps[(piece == ord("]")) | (piece == ord("}"))] = -1
        np.cumsum(steps, out=steps)
        if len(steps):
            deepest = max(deepest, depth + int(steps.max()))
            depth += int(steps[-1])
    return deepest


def _has_large_object(value: Any) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    while level:
        if any(isinstance(one, dict) and len(one) > MAX_MEMBERS for one in level):
            return True
        level = _containers_in(level)
    return False


def _containers_in(level: list[Any]) -> list[Any]:
    return [one for item in level for one in _items(item) if isinstance(one, (dict, list))]


def _is_deeper(value: Any, most: int) -> bool:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = _containers_in(level)
    return bool(level)


# Whole groups of four characters; between two pieces other threads can run.
PIECE = 256 * 1024
SPACE = b" \t\r\n\v\f"
URL_SAFE = bytes.maketrans(b"-_", b"+/")
# The head of a data URI: no photo's base64 has a comma.
DATA_URI = re.compile(rb"data:[^,]{0,256},", re.IGNORECASE)
# JSON's escapes of what base64 has; PHP writes '/' so, .NET '+', Gson '='.
ESCAPES = {
    rb"\/": b"/", rb"\n": b"", rb"\r": b"", rb"\t": b"",
    rb"\u002b": b"+", rb"\u002B": b"+", rb"\u002f": b"/", rb"\u002F": b"/",
    rb"\u003d": b"=", rb"\u003D": b"=",
}  # fmt: skip
LONGEST_ESCAPE = 6

FOREIGN = "the text contains characters that are not base64"


def decode_base64(text: str | bytes | memoryview, *, escaped: bool = False) -> bytes:
    """The bytes of a base64 text, with or without a data URI in front; `escaped`: as it is between
    the quotes of a JSON string.

    The standard and the URL-safe alphabet are accepted, white space anywhere, and padding may be
    missing. A pure function of CPU work: about 3 ms for each MiB of text, in pieces of 256 KiB.

    Raises ValueError for anything else.
    """
    if isinstance(text, str):
        if not text.isascii():
            raise ValueError(FOREIGN)
        text = text.encode()
    pieces = _pieces(memoryview(text))
    return _decode_pieces(_unescape(pieces) if escaped else pieces)


def _pieces(text: memoryview) -> Iterator[bytes]:
    for at in range(0, len(text), PIECE):
        yield bytes(text[at : at + PIECE])


def _unescape(pieces: Iterator[bytes]) -> Iterator[bytes]:
    left = b""
    for more in pieces:
        piece = left + more
        last = piece.rfind(b"\\", -LONGEST_ESCAPE)  # it may continue in the next piece
        left = piece[last:] if last >= 0 else b""
        yield _unescape_all(piece[: len(piece) - len(left)])
    yield _unescape_all(left)


def _unescape_all(piece: bytes) -> bytes:
    if b"\\" in piece:
        for escape, character in ESCAPES.items():
            piece = piece.replace(escape, character)
    return piece


def _decode_pieces(pieces: Iterator[bytes]) -> bytes:
    decoded: list[bytes] = []
    left, first = b"", True
    for piece in pieces:
        if first and (head := DATA_URI.match(piece)):
            piece = piece[head.end() :]  # noqa: PLW2901
        first = False
        left += piece.translate(URL_SAFE, SPACE)
        whole = len(left) // 4 * 4 if b"=" not in left else 0
        decoded.append(_decode(left[:whole]))
        left = left[whole:]
    left = left.rstrip(b"=")
    if len(left) % 4 == 1:
        raise ValueError("the text ends in the middle of a byte")
    return b"".join([*decoded, _decode(left + b"=" * (-len(left) % 4))])


def _decode(group: bytes) -> bytes:
    try:
        return binascii.a2b_base64(group, strict_mode=True)
    except binascii.Error as error:
        raise ValueError(FOREIGN) from error


class JsonRequest(Request):
    """A request whose `json` applies the limits of `parse_json`. Raises InvalidRequest."""

    async def json(self) -> Any:
        body = await body_of(self)
        try:
            if len(body) <= SMALL:
                return parse_json(body)
            parsing: Executor = self.app.state.parsing
            return await asyncio.get_running_loop().run_in_executor(parsing, parse_json, body)
        except ValueError as error:
            raise InvalidRequest(f"The body cannot be read. {error}") from error


class JsonRoute(APIRoute):
    """Calls its handler with a `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(JsonRequest(request.scope, request.receive))

        return bounded
