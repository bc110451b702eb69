"""Forms as clients, browsers and attackers send them."""

import sys
from types import FrameType

import httpx
import pytest

from app.api.bodies import MAX_PARTS, MAX_TEXTS, SLICE, parameters, parse_form, sort_parts
from app.errors import InvalidRequest, RequestTooLarge

TYPE = "multipart/form-data; boundary=x"


def form_of(*parts: bytes) -> bytes:
    return b"".join(b"--x\r\n" + part + b"\r\n" for part in parts) + b"--x--\r\n"


def file(name: str, data: bytes, filename: str = "a.jpg") -> bytes:
    head = f'Content-Disposition: form-data; name="{name}"; filename="{filename}"\r\n\r\n'
    return head.encode() + data


def text(name: str, value: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}'.encode()


def test_parts_by_field() -> None:
    photo = bytes(range(256)) * (SLICE // 100)  # of several slices
    body = form_of(file("image", photo), text("person_id", "Zoë"), file("image", b"2"))
    texts, photos = sort_parts(parse_form(TYPE, body, 2), ("image",))
    assert texts == {"person_id": "Zoë"}
    assert photos == {"image": [photo, b"2"]}


def test_what_a_client_library_writes() -> None:
    request = httpx.Request("POST", "http://x", data={"a": "1"}, files={"image": b"\r\n--\r\n"})
    form = parse_form(request.headers["content-type"], request.read(), 1)
    assert (form.texts, form.files) == ([("a", "1")], [("image", b"\r\n--\r\n")])


def test_fields_that_a_browser_sends_empty() -> None:
    body = form_of(file("image", b"", filename=""), text("reference", ""), text("person_id", "a"))
    assert sort_parts(parse_form(TYPE, body, 2), ("image", "reference")) == ({"person_id": "a"}, {})


@pytest.mark.parametrize("kind", ["image/jpeg", "Application/Octet-Stream"])
def test_a_photo_without_a_filename_is_known_by_its_type(kind: str) -> None:
    head = f'Content-Disposition: form-data; name="image"\r\nContent-Type: {kind}\r\n\r\n'
    form = parse_form(TYPE, form_of(head.encode() + b"\xff"), 2)
    assert (form.texts, form.files) == ([], [("image", b"\xff")])


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("multipart/form-data", form_of(), "no boundary"),
        (TYPE, b"garbage", "damaged"),
        (TYPE, form_of(file("image", b"1"))[:-6], "incomplete"),
        (TYPE, b"", "incomplete"),
        (TYPE, form_of(b"Content-Type: text/plain\r\n\r\n1"), "no name"),
        (TYPE, form_of(b'Content-Disposition: form-data; name="a"\r\n\r\n\xff'), "UTF-8"),
        (TYPE, form_of(b'Content-Disposition: form-data; name="\xff"\r\n\r\n1'), "UTF-8"),
        (TYPE, form_of(b"a: " + b"b" * 100_000 + b"\r\n\r\n1"), "damaged"),
        (TYPE, form_of(b"a: b\r\n" * 1_000 + b"\r\n1"), "damaged"),
        (f"multipart/form-data; boundary={'x' * 1_000}", form_of(), "damaged"),
    ],
)
def test_what_is_no_form(kind: str, body: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        parse_form(kind, body, 8)


@pytest.mark.parametrize(
    "parts",
    [
        [file("image", b"1")] * 3,
        [text("a", "1")] * (MAX_TEXTS + 1),
        [file("image", b"", filename="")] * (MAX_PARTS + 1),
    ],
)
def test_too_many_parts(parts: list[bytes]) -> None:
    with pytest.raises(RequestTooLarge, match="The form has more than"):
        parse_form(TYPE, form_of(*parts), 2)


def test_texts_that_cannot_be_sorted() -> None:
    for parts, said in (
        ([text("image", "http://x")], "as text"),
        ([text("a", "1"), text("a", "2")], "more than once"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            sort_parts(parse_form(TYPE, form_of(*parts), 2), ("image",))


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b'form-data; name="a"; filename="b"', {b"name": b"a", b"filename": b"b"}),
        (b"form-data;NAME = a ;filename=", {b"name": b"a", b"filename": b""}),
        (
            b'form-data; name="a;b=c\\"d\\\\"; filename=";"',
            {b"name": b'a;b=c"d\\', b"filename": b";"},
        ),
        (b'form-data; x="; name=b"; name=a', {b"name": b"a"}),
        (b"form-data; name=\"a\"; filename*=UTF-8''b", {b"name": b"a"}),
        (b'form-data; name="a', {b"name": b'"a'}),
        (b"multipart/form-data; boundary=-x; charset=utf-8", {b"boundary": b"-x"}),
        (b"name=a", {}),
        (b"", {}),
    ],
)
def test_parameters_of_a_header(header: bytes, found: dict[bytes, bytes]) -> None:
    assert parameters(header) == found


@pytest.mark.parametrize("opened", [b'; x="', b""])
def test_semicolons_of_a_header_cost_no_search_of_its_rest(opened: bytes) -> None:
    """Work that is counted in calls, because python-multipart makes some for each semicolon, and
    each searches the rest of the header."""

    def calls(semicolons: int) -> int:
        head = b'Content-Disposition: form-data; name="a"' + opened + b";" * semicolons
        body, made = form_of(head + b"\r\n\r\n1"), 0

        def count(_frame: FrameType, event: str, _argument: object) -> None:
            nonlocal made
            made += event == "c_call"

        sys.setprofile(count)
        try:
            parse_form(TYPE + (opened + b";" * semicolons).decode(), body, 1)
        finally:
            sys.setprofile(None)
        return made

    assert calls(4_000) == calls(1)
