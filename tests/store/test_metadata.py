"""Metadata: one rule for all that comes in, and what came in before it is shown all the same."""

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.store.metadata import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_INTEGER,
    MAX_MEMBERS,
    CorrectedMetadata,
    _is_plain,
    as_storable,
    check_metadata,
    find_problem,
    problem_of,
    read_stored,
)
from app.store.records import NewTemplate, PersonTemplate
from app.store.store import Store
from tests.gallery.conftest import SPACE, template
from tests.store.test_store import Draw
from tests.writing import store_person


def nested(depth: int) -> dict[str, Any]:
    """Objects within one another."""
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


GOOD: list[dict[str, Any]] = [
    {},
    {"team": "night", "n": 1, "x": 1.5, "yes": True, "none": None, "tags": ["a", {"b": []}]},
    {"\u00fc \"'": "\N{GRINNING FACE}\n\t\x01", "": ""},
    {"most": MAX_INTEGER, "least": -MAX_INTEGER, "huge": 1e300},
    nested(MAX_DEPTH),
    {str(i): i for i in range(MAX_MEMBERS)},
    {"a": "x" * (MAX_BYTES - len('{"a": ""}'))},
]
BAD: list[tuple[Any, str]] = [
    ([], "metadata must be a JSON object"),
    ("x", "metadata must be a JSON object"),
    (nested(MAX_DEPTH + 1), "nested more than 32 deep"),
    (nested(500), "nested more than 32 deep"),
    ({"a": {"b": ["\ud83d"]}}, r"metadata\.a\.b\[0\] contains U\+D83D \(lone surrogate\)"),
    ({"a\udc00": 1}, r"a member whose name contains U\+DC00"),
    ({"a": "x\0"}, r"U\+0000 \(control character\) at position 2"),
    ({"a": math.nan}, "finite"),
    ({"a": [math.inf]}, r"a\[0\] must be a finite number"),
    ({"a": MAX_INTEGER + 1}, "send it as text"),
    ({"a": 10**4000}, "send it as text"),
    ({str(i): i for i in range(MAX_MEMBERS + 1)}, "1,000 members; it has 1,001"),
    ({"a": "x" * MAX_BYTES}, r"16,384 bytes as JSON; it has 16,393"),
    ({"a": "\u00e9" * 10_000_000}, r"metadata\.a contains 10,000,000 characters"),
    ({"a": [0] * 10_000_000}, "16,384 bytes"),
    ({"a": b"x"}, "type bytes"),
    ({1: 2}, "not text but int"),
]


@pytest.mark.parametrize("value", GOOD)
def test_what_every_database_and_reader_can_carry(value: dict[str, Any]) -> None:
    assert check_metadata(value) is value
    assert as_storable(value) == value
    assert type(read_stored(json.dumps(value))) is dict
    assert read_stored(json.dumps(value)) == value


@pytest.mark.parametrize(("value", "message"), BAD)
def test_what_they_cannot_is_refused_with_its_place(value: Any, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_metadata(value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


@pytest.mark.parametrize("examples", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_whatever_is_stored_is_shown_as_what_could_be(examples: int) -> None:
    @settings(max_examples=examples)
    @given(st.dictionaries(st.text(st.characters()), values))
    def check(value: dict[str, Any]) -> None:
        shown = read_stored(json.dumps(value))
        assert find_problem(dict(shown)) is None
        assert (problem_of(shown) is None) == (find_problem(value) is None)
        if problem_of(shown) is None:
            assert json.dumps(shown, sort_keys=True) == json.dumps(value, sort_keys=True)

    check()


def test_what_is_shown_is_near_to_what_is_stored() -> None:
    stored = {
        "text": "a\ud83db", "number": math.nan, "id": 2**60, "ok": [1, True], "blob": "x" * 20_000,
    }  # fmt: skip
    shown = {"text": "a\ufffdb", "number": None, "id": str(2**60), "ok": [1, True]}
    assert read_stored(json.dumps(stored)) == shown
    deep = json.dumps({"keep": 1, "deep": nested(100)})
    found = read_stored(deep)
    assert isinstance(found, CorrectedMetadata)
    assert (found["keep"], found.original) == (1, deep)
    for unreadable in ("[" * 100_000, '{"a": ' * 50_000 + "1" + "}" * 50_000, "3", "{", ""):
        assert read_stored(unreadable) == {}
        assert problem_of(read_stored(unreadable))


class TestStore:
    """Every way into the store, on every engine."""

    @pytest.mark.parametrize("bad", [{"a": "\ud83d"}, {"a": math.nan}, nested(40), {"a": "\0"}])
    def test_nothing_is_stored_that_is_refused(
        self, store: Store, directions: Draw, bad: Any
    ) -> None:
        (vector,) = directions(1)
        store_person(store, "default", "ada", {"n": 1}, [template(vector, "1")])
        rated = NewTemplate(vector, "9", quality=bad)
        for attempt in (
            lambda: store.collections.create("other", SPACE, 16, bad),
            lambda: store.collections.update("default", bad, None),
            lambda: store.persons.create("default", "eve", bad),
            lambda: store.persons.update("default", "ada", bad),
            lambda: store_person(store, "default", "ada", bad, [template(vector, "2")]),
            lambda: store_person(store, "default", "eve", bad, [template(vector, "2")]),
            lambda: store_person(store, "default", "eve", None, [rated]),
            lambda: store.imports.enroll(
                "default", [PersonTemplate("eve", bad, NewTemplate(vector, "3"))], SPACE
            ),
            lambda: store.imports.enroll(
                "default", [PersonTemplate("ada", bad, NewTemplate(vector, "3"))], SPACE
            ),
            lambda: store.imports.enroll("default", [PersonTemplate("eve", None, rated)], SPACE),
        ):
            with pytest.raises(InvalidRequest):
                attempt()
        (person,) = store.persons.page("default", None, 10).items
        assert (person.metadata, person.templates) == ({"n": 1}, 1)
        assert store.collections.get("default").metadata == {}


@given(st.text(alphabet="0123456789eE.-, x\u0660", max_size=60))
def test_the_quick_check_sees_every_long_number_and_exponent(text: str) -> None:
    # Digits of other scripts are none of JSON.
    suspicious = re.search(r"[0-9]{16}|[0-9][eE]", text) is not None
    assert _is_plain(text) is not suspicious


def test_an_inner_object_with_too_many_members_is_corrected() -> None:
    """It would be refused if it were sent back."""
    inner = {f"m{number}": 1 for number in range(MAX_MEMBERS + 1)}
    stored = read_stored(json.dumps({"a": inner}))
    assert isinstance(stored, CorrectedMetadata)
    assert len(stored["a"]) == MAX_MEMBERS
