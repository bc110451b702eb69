"""Photos in JSON: every spelling of base64 that clients write."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.base64_photos import PIECE, decode_base64

# Its standard encoding has '+', '/' and padding.
PHOTO = b"\xff\xd8\xff\xfb\xef\xbe photo \xff"
STANDARD = base64.b64encode(PHOTO).decode()


@pytest.mark.parametrize(
    "text",
    [
        STANDARD,
        STANDARD.rstrip("="),
        base64.urlsafe_b64encode(PHOTO).decode(),
        base64.urlsafe_b64encode(PHOTO).decode().rstrip("="),
        "\n".join(STANDARD[i : i + 8] for i in range(0, len(STANDARD), 8)),
        f"data:image/jpeg;base64,{STANDARD}",
        f"DATA:image/jpeg;BASE64,{STANDARD.rstrip('=')}",
        f"Data:;base64, {STANDARD}\r\n",
    ],
)
def test_spellings(text: str) -> None:
    assert "+" in STANDARD
    assert "/" in STANDARD
    assert STANDARD.endswith("=")
    assert decode_base64(text) == PHOTO


@given(st.binary(max_size=64))
def test_every_photo_comes_back(data: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(data).decode()
        assert decode_base64(text) == decode_base64(text.rstrip("=")) == data


def test_a_text_as_it_stands_in_json() -> None:
    """Escapes on every boundary of two pieces: PHP's of '/', .NET's of '+', Gson's of '='."""
    photo = PHOTO * (PIECE // len(PHOTO))
    plain = base64.b64encode(photo).decode()
    escaped = plain.replace("/", r"\/").replace("+", r"\u002B").replace("=", r"\u003d")
    for shift in range(8):
        text = r"\r\n" * shift + "A" * 4 + escaped
        decoded = decode_base64(memoryview(text.encode()), escaped=True)
        assert decoded == b"\0" * 3 + photo
    with pytest.raises(ValueError, match="not base64"):
        decode_base64(escaped)
    for wrong in (r"AA\u0041A", "AAAA\\", r"AAA\\/", r"\b"):
        with pytest.raises(ValueError, match="the text"):
            decode_base64(wrong.encode(), escaped=True)


@pytest.mark.parametrize(
    "text",
    ["https://example.org/a.jpg", "a", "AAAAA", "AA=A", "AA.A", "ÄÄÄÄ", "\ud800AAA", "A\0AA"],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the text"):
        decode_base64(text)
