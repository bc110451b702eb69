"""Ids: what a new one may hold, in which form it is stored, and how it is found."""

import unicodedata
import uuid

import pytest

from app.errors import (
    CollectionNotFound,
    FaceNotFound,
    InvalidRequest,
    PersonExists,
    PersonNotFound,
)
from app.store.identifiers import new_face_id, new_person_id, new_request_key, spellings
from app.store.records import NewTemplate, PersonTemplate
from app.store.store import Store
from tests.gallery.conftest import SPACE, template
from tests.store.test_store import Draw
from tests.writing import store_person

COMPOSED, DECOMPOSED = "jos\u00e9", "jose\u0301"
NAMES = [
    "ada", "Ada Lovelace", "o'neil", "123", "a" * 256, "\N{GRINNING FACE}", "\u674e\u96f7",
    "\u0639\u0644\u06cc\u200c\u0631\u0636\u0627",  # Persian, with U+200C
    "\u0dc1\u0dca\u200d\u0dbb\u0dd3",  # Sinhala, with U+200D after its virama
    "\u0915\u094d\u200d\u0937",  # Devanagari
    "\u0930\u093e\u0915\u094d\u200c\u0937\u0938",
    "\u0d30\u0d3e\u0d1c\u0d28\u0d4d\u200d",  # Malayalam: a chillu of old texts ends the name
    "\u845b\U000e0100\u57ce",  # Japanese: a variation of an ideograph
    "\u2764\ufe0f",
]  # fmt: skip
REFUSED = {
    "": "1 to 256",
    ".": "not be '.'",
    "..": "not be '.'",
    "a" * 257: "257",
    "\u00e9" * 10_000_000: "10000000",
    "a/b": r"U\+002F SOLIDUS at position 2",
    " ada": "begins or ends with a space",
    "ada\u202eeve": r"U\+202E RIGHT-TO-LEFT OVERRIDE at position 4",
    "ad\u2066a": r"U\+2066 LEFT-TO-RIGHT ISOLATE at position 3",
    "ad\u200ba": r"U\+200B ZERO WIDTH SPACE at position 3",
    "\ufeffada": r"U\+FEFF ZERO WIDTH NO-BREAK SPACE at position 1",
    "ad\u00a0a": r"U\+00A0 NO-BREAK SPACE at position 3",
    "ad\u200da": r"U\+200D ZERO WIDTH JOINER at position 3",  # invisible between Latin letters
    "\u0639\u200c": r"U\+200C ZERO WIDTH NON-JOINER at position 2",
    "\u200c\u0639": r"U\+200C ZERO WIDTH NON-JOINER at position 1",
    "ada\ufe0f": r"U\+FE0F VARIATION SELECTOR-16 at position 4",
    "ada\u3164": r"U\+3164 HANGUL FILLER at position 4",
    "ad\0a": r"U\+0000 \(control character\) at position 3",
    "ada\ud83d": r"U\+D83D \(lone surrogate\) at position 4",
    "ada\ue000": r"U\+E000 \(private use character\)",
    "ada\n": r"U\+000A",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_people_are_taken(name: str) -> None:
    assert new_person_id(name) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_seen_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidRequest, match=REFUSED[name]):
        new_person_id(name)


def test_the_length_is_that_of_what_is_stored() -> None:
    assert len(new_person_id("e\u0301" * 256)) == 256


@pytest.mark.parametrize("key", ["", "a" * 256, "\u00e9", "a\n", "\0"])
def test_request_keys_are_printable_ascii(key: str) -> None:
    with pytest.raises(InvalidRequest, match="printable ASCII"):
        new_request_key(key)


def test_nothing_is_stored_under_a_text_that_no_database_holds() -> None:
    assert spellings("ada\ud83d") == spellings("ad\0a") == []
    assert spellings(DECOMPOSED) == [DECOMPOSED, COMPOSED]


class TestStore:
    """Every way into the store, on every engine."""

    def test_an_id_is_one_however_it_is_composed(self, store: Store, directions: Draw) -> None:
        one, two, three = directions(3)
        made = store_person(store, "default", DECOMPOSED, None, [template(one, "1")])
        assert made[0].face.person_id == COMPOSED
        store_person(store, "default", COMPOSED, None, [template(two, "2")])
        row = PersonTemplate(DECOMPOSED, None, NewTemplate(three, "3"))
        assert store.imports.enroll("default", [row], SPACE)[0]
        with pytest.raises(PersonExists):
            store.persons.create("default", DECOMPOSED, {})
        (person,) = store.persons.page("default", None, 10).items
        assert (person.person_id, person.templates) == (COMPOSED, 3)
        for spelling in (COMPOSED, DECOMPOSED):
            assert store.persons.get("default", spelling).key == person.key
            assert len(store.embeddings.of_person("default", spelling)[0]) == 3
            assert len(store.templates.page("default", spelling, None, 10).items) == 3
            assert store.imports.with_faces("default", {spelling}) == {COMPOSED}
            known = store.imports.known_contents("default", {(spelling, "1"), (spelling, "9")})
            assert known == {(COMPOSED, "1")}
        face = store.templates.page("default", None, None, 1).items[0]
        assert (
            store.corrections.move_face("default", face.face_id, DECOMPOSED).person_id == COMPOSED
        )
        with pytest.raises(InvalidRequest, match="with themselves"):
            store.corrections.merge_persons("default", DECOMPOSED, COMPOSED)
        assert store.persons.delete("default", DECOMPOSED).templates == 3

    def test_nothing_is_stored_under_an_id_that_is_refused(
        self, store: Store, directions: Draw
    ) -> None:
        (vector,) = directions(1)
        bad = "ada\u202e"
        face = store_person(store, "default", "ada", None, [template(vector, "1")])[0].face
        for attempt in (
            lambda: store.persons.create("default", bad, {}),
            lambda: store_person(store, "default", bad, None, [template(vector, "2")]),
            lambda: store.imports.enroll(
                "default", [PersonTemplate(bad, None, NewTemplate(vector, "3"))], SPACE
            ),
            lambda: store.imports.enroll(
                "default",
                [PersonTemplate("ada", None, NewTemplate(vector, "4"), face_id="../x")],
                SPACE,
            ),
            lambda: store.corrections.move_face("default", face.face_id, bad),
            lambda: store.persons.update("default", "ada", new_id=bad),
            lambda: store.collections.create("\u00e9", SPACE, 16, {}),
            lambda: store.collections.create("a\n", SPACE, 16, {}),
        ):
            with pytest.raises(InvalidRequest):
                attempt()
        assert [p.person_id for p in store.persons.page("default", None, 9).items] == ["ada"]
        assert [c.name for c in store.collections.page(None, 9).items] == ["default"]

    @pytest.mark.parametrize("text", ["ada\ud83d", "ad\0a", "nobody"])
    def test_looking_for_what_cannot_be_there_finds_nothing(self, store: Store, text: str) -> None:
        with pytest.raises(PersonNotFound):
            store.persons.get("default", text)
        with pytest.raises(FaceNotFound):
            store.templates.get("default", text)
        with pytest.raises(CollectionNotFound):
            store.collections.get(text)
        with pytest.raises(PersonNotFound):
            store.persons.delete("default", text)

    def test_a_person_gets_another_id(self, store: Store, directions: Draw) -> None:
        (vector,) = directions(1)
        face = store_person(store, "default", "ada", {"n": 1}, [template(vector, "1")])[0].face
        store.persons.create("default", "eve", {})
        with pytest.raises(PersonExists):
            store.persons.update("default", "ada", new_id="eve")
        renamed = store.persons.update("default", "ada", new_id=DECOMPOSED)
        assert (renamed.person_id, renamed.metadata) == (COMPOSED, {"n": 1})
        assert store.templates.get("default", face.face_id).person_id == COMPOSED
        with pytest.raises(PersonNotFound):
            store.persons.get("default", "ada")


def test_face_ids_are_what_we_make() -> None:
    assert new_face_id(str(uuid.UUID(int=7)))
    for bad in ("x", "{00000000-0000-0000-0000-000000000007}", "0" * 31 + "7"):
        with pytest.raises(InvalidRequest, match="UUID"):
            new_face_id(bad)
