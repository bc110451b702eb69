"""Reads bodies of requests within limits of length and time, and parses forms (multipart/form-data)
in memory with python-multipart.

Starlette's own parser is not used because it writes large files to disk, and photos must not be.
Parsing is pure CPU work, in slices between which other threads can run.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive, Scope

from app.api.transfers import Transfer, Transfers
from app.errors import InvalidRequest, RequestTimeout, RequestTooLarge, UnsupportedEncoding

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

GRACE_S = 10.0
# Key in a request's scope: its whole body.
BODY = "likeness.body"
# Headers that name codings of the body, and the one coding of each that is understood.
UNDERSTOOD = {b"content-encoding": "identity", b"transfer-encoding": "chunked"}


class SteadyReceive:
    """`receive` of a request whose body must arrive at a lowest rate."""

    def __init__(self, receive: Receive, transfer: Transfer, min_rate: int) -> None:
        self._receive = receive
        self._transfer = transfer
        self._min_rate = min_rate
        self._waited = 0.0

    async def __call__(self) -> Message:
        """The next message. Raises RequestTimeout."""
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._left()):
                message = await self._receive()
        except TimeoutError as error:
            raise RequestTimeout(
                f"The body arrived more slowly than {self._min_rate:,} bytes a second; send it "
                "again over a faster connection or in smaller parts."
            ) from error
        self._waited += time.monotonic() - start
        if message["type"] == "http.request":
            self._transfer.moved += len(message.get("body", b""))
            self._transfer.arrived = not message.get("more_body", False)
        return message

    def _left(self) -> float | None:
        """Seconds that waiting for the client may still take; other time is not counted."""
        if not self._min_rate:
            return None
        return GRACE_S + self._transfer.moved / self._min_rate - self._waited


@dataclass(frozen=True, slots=True)
class Announced:
    """What the head of a request says of its body: its bytes, 0 if it does not say; and whether
    there may be one."""

    length: int
    any: bool

    @classmethod
    def by(cls, scope: Scope) -> "Announced":
        """Raises UnsupportedEncoding for a compressed body: its length would say nothing of what it
        takes."""
        length, chunked = 0, False
        for name, value in scope["headers"]:
            if name == b"content-length":
                length = _content_length(value)
            elif name in UNDERSTOOD:
                chunked = chunked or name == b"transfer-encoding"
                _check_codings(name.decode(), value.decode("latin-1"), UNDERSTOOD[name])
        return cls(length, chunked or length > 0)


def _content_length(digits: bytes) -> int:
    """Of a request, by its first 20 digits: more are too large in any case, and Python refuses
    to read thousands."""
    return int(digits.lstrip(b"0")[:20] or b"0") if digits.isdigit() else 0


def _check_codings(name: str, value: str, understood: str) -> None:
    for coding in filter(None, (one.strip() for one in value.split(","))):
        if coding.lower() != understood:
            raise UnsupportedEncoding(
                f"The body has the {name.title()} '{coding[:40]}', which this service does not "
                "decode; send the body as it is, without that header."
            )


async def read_body(
    announced: Announced,
    receive: Receive,
    transfers: Transfers,
    *,
    limit: int,
    min_rate: int,
    begun: Callable[[Transfer], None],
) -> bytearray:
    """The whole body; `begun` is called with its transfer.

    Raises RequestTooLarge, RequestTimeout, Overloaded and ClientDisconnect.
    """
    if announced.length > limit:
        raise _too_large(limit)
    body = bytearray()
    if not announced.any:
        await _next(receive)
        return body
    with transfers.open() as transfer:
        begun(transfer)
        steady = SteadyReceive(receive, transfer, min_rate)
        while True:
            message = await _next(steady)
            piece: bytes = message.get("body", b"")
            if len(body) + len(piece) > limit:
                raise _too_large(limit)
            transfers.hold(transfer, len(piece))
            body += piece
            if not message.get("more_body", False):
                return body


async def _next(receive: Callable[[], Awaitable[Message]]) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(f"The body is larger than {limit:,} bytes; split the request.")


async def body_of(request: Request) -> bytes | bytearray:
    """The body of a call as `Admission` has read it, without copying it."""
    kept: bytearray | None = request.scope.get(BODY)
    return await request.body() if kept is None else kept


SLICE = 256 * 1024
# Content types of parts that are files without a name.
FILE_TYPES = (b"image/", b"application/octet-stream")
MAX_TEXTS = 64
# Of all kinds, fields left empty among them.
MAX_PARTS = 1_024
# A text field holds JSON at the longest: 512 embeddings of 512 numbers.
MAX_TEXT_BYTES = 16 * 1024 * 1024
# A parameter of a header: its value is in quotes, with escapes, or ends at the next semicolon.
# Possessive (`++`), so that no byte is read again for each semicolon before it.
PARAMETER = re.compile(
    rb';[ \t]*+([^\s=;"]++)[ \t]*+=[ \t]*+("[^"\\]*+(?:\\.[^"\\]*+)*+"|[^;]*+)', re.DOTALL
)
USED = (b"boundary", b"name", b"filename")
ESCAPED = re.compile(rb'\\(["\\])')


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of a form in their order: texts and files by field."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    files: list[tuple[str, bytes]] = field(default_factory=list)


def parse_form(content_type: str, body: bytes | bytearray, max_files: int) -> Form:
    """The parts of a form of at most `max_files` files.

    Raises InvalidRequest, and RequestTooLarge for too many parts.
    """
    boundary = parameters(content_type.encode("latin-1", "replace")).get(b"boundary")
    if not boundary:
        raise InvalidRequest(
            "The form has no boundary in its content type; let your client library set that header."
        )
    parts = _Parts(max_files)
    view = memoryview(body)
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        for start in range(0, len(view), SLICE):
            parser.write(bytes(view[start : start + SLICE]))
        parser.finalize()
    except (FormParserError, UnicodeDecodeError) as error:
        raise InvalidRequest(
            "The form cannot be read: it is damaged, or a text in it is not UTF-8. Send it again "
            "with a client library that writes forms."
        ) from error
    if not parts.ended:
        raise InvalidRequest(
            "The form is incomplete: its closing boundary is missing. Send all of it."
        )
    return parts.form


def parameters(header: bytes) -> dict[bytes, bytes]:
    """The parameters of a header that a form needs, as of `form-data; name="image"`.

    Takes time in proportion to the header's length; python-multipart's own function takes 12 ms for
    the longest header of a part if that is full of semicolons. Like that function it ignores
    `filename*`, which forms must not have (RFC 7578, 4.2).
    """
    found = ((name.lower(), value) for name, value in PARAMETER.findall(header))
    return {name: _unquoted(value) for name, value in found if name in USED}


def _unquoted(value: bytes) -> bytes:
    value = value.strip(b" \t")
    if len(value) >= 2 and value[:1] == value[-1:] == b'"':
        return ESCAPED.sub(rb"\1", value[1:-1])
    return value


class _Parts:
    """The parser's callbacks, and the parts so far."""

    def __init__(self, max_files: int) -> None:
        self.form = Form()
        self.ended = False
        self._max_files = max_files
        self._name, self._value = bytearray(), bytearray()
        self._disposition = self._type = b""
        self._data = bytearray()
        self._field, self._count = "", 0
        self._is_file = self._has_filename = False

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition, self._type, self._data = b"", b"", bytearray()
        self._count += 1
        if self._count > MAX_PARTS:
            raise RequestTooLarge(f"The form has more than {MAX_PARTS} parts; split the request.")

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        elif self._name.lower() == b"content-type":
            self._type = bytes(self._value).strip().lower()
        self._name, self._value = bytearray(), bytearray()

    def _headers_end(self) -> None:
        options = parameters(self._disposition)
        if b"name" not in options:
            raise InvalidRequest("A part of the form has no name; give each part a field name.")
        self._field = options[b"name"].decode()
        # A file need not have a name (RFC 7578, 4.2); .NET's client gives it none.
        self._is_file = b"filename" in options or self._type.startswith(FILE_TYPES)
        self._has_filename = bool(options.get(b"filename"))
        if self._is_file and len(self.form.files) >= self._max_files:
            raise RequestTooLarge(
                f"The form has more than {self._max_files} files; split the request."
            )
        if not self._is_file and len(self.form.texts) >= MAX_TEXTS:
            raise RequestTooLarge(
                f"The form has more than {MAX_TEXTS} text fields; split the request."
            )

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file and len(self._data) + end - start > MAX_TEXT_BYTES:
            raise RequestTooLarge(
                f"The field '{self._field}' has more than {MAX_TEXT_BYTES:,} bytes of text; "
                "shorten it, or split the request."
            )
        self._data += data[start:end]

    def _part_end(self) -> None:
        if self._is_file:
            if self._data or self._has_filename:  # an empty field of a browser's form has neither
                self.form.files.append((self._field, bytes(self._data)))
        else:
            self.form.texts.append((self._field, self._text()))
        self._data = bytearray()

    def _text(self) -> str:
        try:
            return self._data.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"The field '{self._field}' is not text in UTF-8; a photo is sent with a "
                "filename, or "
                "with its Content-Type."
            ) from error

    def _end(self) -> None:
        self.ended = True


def sort_parts(
    form: Form, photo_fields: Sequence[str]
) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    """Texts and photos by field. Raises InvalidRequest."""
    texts: dict[str, str] = {}
    photos: dict[str, list[bytes]] = {}
    for name, data in form.files:
        photos.setdefault(name, []).append(data)
    for name, text in form.texts:
        if name in photo_fields and text == "":
            continue
        if name in photo_fields:
            raise InvalidRequest(
                f"'{name}' came as text, not as a file; with curl write -F {name}=@photo.jpg."
            )
        if name in texts:
            raise InvalidRequest(f"The field '{name}' was sent more than once; send it once.")
        texts[name] = text
    return texts, photos
