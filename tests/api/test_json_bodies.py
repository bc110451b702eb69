"""JSON within bounds: what is cut out, what is too much, and what stays as it was."""

import base64
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api import json_bodies
from app.api.json_bodies import (
    LONG,
    MAX_DEPTH,
    MAX_MEMBERS,
    MAX_VALUES,
    PIECE,
    LongText,
    decode_base64,
    parse_json,
    parse_with_long_texts,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.booleans())
def test_values_are_those_of_json(value: Any, escaped: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=escaped)) == value


@given(JSON, st.booleans())
def test_also_where_every_string_is_long(value: Any, escaped: bool) -> None:
    """Long strings are found whatever is before and in them: put back, they make the same value."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_bodies, "LONG", 5)
        found, texts = parse_with_long_texts(json.dumps(value, ensure_ascii=escaped))
        assert put_back(found, texts) == value
        texts.check_all_taken()


def put_back(value: Any, texts: Any) -> Any:
    if isinstance(value, list):
        return [put_back(one, texts) for one in value]
    if isinstance(value, dict):
        return {put_back(k, texts): put_back(v, texts) for k, v in value.items()}
    taken = texts.take(value)
    return orjson.loads(b'"' + bytes(taken.raw) + b'"') if isinstance(taken, LongText) else taken


@pytest.mark.parametrize(
    "text", ["18446744073709551616", "-9223372036854775809", "89490200001234567890", "1" * 60]
)
@pytest.mark.parametrize("form", ['{"a": %s}', '{"a": [1,%s]}', '{"a":"%s","b":\t-1, "c": %s}'])
def test_integers_of_more_than_64_bits_are_refused(text: str, form: str) -> None:
    """The parser would make the same float of different ones."""
    with pytest.raises(ValueError, match=rf"integer {text[:20]}.*more than 64 bits"):
        parse_json(form.replace("%s", text))


@pytest.mark.parametrize(
    "text",
    ["18446744073709551615", "-9223372036854775808", "1e20", "0.00012345678901234567", "1E+19",
     "1234567890123456789.5", "12345678901234567890e1", '"12345678901234567890"',
     '"a, 12345678901234567890, b"', '"\\", 12345678901234567890]"'],
)  # fmt: skip
def test_other_long_numbers_are_read(text: str) -> None:
    assert parse_json(f'{{"a": [{text}]}}') == json.loads(f'{{"a": [{text}]}}')


@pytest.mark.parametrize("text", ["18446744073709551616", '"a 18446744073709551616, b"'])
def test_a_long_integer_in_a_deep_body_is_refused_for_the_depth(text: str) -> None:
    for depth in (900, 1_000, 1_015):
        with pytest.raises(ValueError, match="nested more than 64 deep"):
            parse_json("[" * depth + text + "]" * depth)


def test_a_long_integer_is_found_wherever_it_is() -> None:
    number = b"89490200001234567890"
    for gap in range(json_bodies.SLICE - 40, json_bodies.SLICE + 40, 7):
        with pytest.raises(ValueError, match="more than 64 bits"):
            parse_json(b"[" + b" " * gap + number + b"]")


def test_a_photo_is_cut_out_and_can_be_taken_once() -> None:
    photo = "A" * (LONG + 4)
    value, texts = parse_with_long_texts(json.dumps({"a": [1, photo], "b": "short"}))
    assert value["b"] == "short"
    taken = texts.take(value["a"][1])
    assert isinstance(taken, LongText)
    assert taken.raw == photo.encode()
    texts.check_all_taken()


def test_a_long_text_elsewhere_is_refused() -> None:
    with pytest.raises(ValueError, match="not a photo"):
        parse_json(json.dumps({"person_id": "x" * (LONG + 1)}))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested"),
        (b"[" * 1_000_000, "values"),
        (b"[" + b"[]," * MAX_VALUES + b"[]]", "values"),
        (b"[" + b"1," * MAX_VALUES + b"1]", "values"),
        (b"[" * 40_000, "not valid"),
        (b'"' + b'\\"' * 200_000 + b'"', "values"),
        (b'"' + b"\\" * 100_000 + b'"', "backslashes"),
        (json.dumps(dict.fromkeys(range(MAX_MEMBERS + 1))).encode(), "members"),
        (json.dumps([{"a": dict.fromkeys(range(MAX_MEMBERS + 1))}]).encode(), "members"),
        (b'"' + b"a" * 100_000, "no closing quote"),
        (b"[NaN]", "not valid"),
        (b"\xff" * 20_000, "not valid"),
        (b"", "not valid"),
    ],
)
def test_what_is_too_much(body: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_json(body)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        json.dumps({"text": "[{" * 100}).encode(),
        json.dumps({"text": ":" * 10_000}).encode(),
        json.dumps([dict.fromkeys(map(str, range(MAX_MEMBERS)))] * 3).encode(),
        json.dumps({"text": 'a "quoted" \\ back\\\\slash'}).encode(),
        json.dumps([[0.5] * 512] * 500).encode(),
    ],
)
def test_what_is_not(body: bytes) -> None:
    assert parse_json(body) == json.loads(body)
    assert parse_json(bytearray(body)) == json.loads(body)


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
