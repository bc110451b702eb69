"""Collections that need the consent of each person."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, update

from app.errors import ConsentMissing, InvalidRequest, NoConsent, PersonExists, PersonNotFound
from app.gallery.backup_bodies import dump, load
from app.gallery.retention import expiry_of
from app.store.records import PersonTemplate
from app.store.sql.consents import (
    EARLIEST,
    WITHDRAWN,
    WITHOUT_END,
    consent_until,
    keep_consent,
    rebuild_consents,
)
from app.store.sql.lookups import get_collection
from app.store.sql.tables import persons
from app.store.store import Store
from tests.gallery.conftest import DIMENSION, SPACE, open_store, template
from tests.writing import store_person

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
YEAR = {"consent": {"reference": "form 17", "expires": "2027-03-01"}}
ENDED = {"consent": {"reference": "form 17", "expires": "2026-02-28"}}
END = datetime(2027, 3, 2, tzinfo=UTC)
AGAIN = {"consent": {"reference": "form 18", "expires": "2027-03-01"}}
GONE = {"consent": {"reference": "form 17", "withdrawn": True}}
NEW = [template(np.eye(DIMENSION, dtype=np.float32)[0], "photo")]


@pytest.fixture
def strict(store: Store) -> Store:
    store.database.clock = lambda: NOW
    store.collections.create("staff", SPACE, DIMENSION, {}, {"consent_required": True})
    return store


def actions(store: Store) -> list[str]:
    return [one.members["action"] for one in store.audit.latest(50)]


@pytest.mark.parametrize(
    ("consent", "until"),
    [
        ({"reference": "form 17"}, WITHOUT_END),
        ({"reference": "f", "expires": "2027-03-01"}, END),
        ({"reference": "f", "expires": "2027-03-02T02:00+02:00"}, END),
        ({"reference": "f", "expires": "2027-03-01", "withdrawn": False}, END),
        ({"reference": "f", "expires": "0001-01-01"}, EARLIEST),
        ({"reference": "f", "expires": "9999-12-31T23:59Z"}, WITHOUT_END),
        ({"reference": "f", "withdrawn": True}, WITHDRAWN),
        ({"reference": "f", "withdrawn": None}, WITHOUT_END),
        *[({"reference": "f", "withdrawn": x}, None) for x in (0, 1, "no", "2026-11-26", [])],
        ({"reference": "f", "expires": "2027-03-01T12:00"}, None),  # no zone
        ({"reference": "f", "expires": "01/03/2027"}, None),
        ({"reference": "f", "expires": "9999-12-31"}, WITHOUT_END),
        ({"reference": "f", "expires": 20270301}, None),
        ({"reference": " "}, None),
        ({"reference": "f" * 301}, None),
        ({"expires": "2027-03-01"}, None),
        ("form 17", None),
        (None, None),
    ],
)  # fmt: skip
def test_what_a_consent_is(consent: Any, until: datetime | None) -> None:
    assert consent_until({"consent": consent}) == until


@pytest.mark.parametrize("metadata", [None, {}, {"consent": "yes"}, ENDED, GONE])
def test_nobody_is_enrolled_without_one(strict: Store, metadata: Any) -> None:
    with pytest.raises(ConsentMissing):
        store_person(strict, "staff", "ada", metadata, NEW)
    rows = [PersonTemplate("ada", metadata, NEW[0])]
    assert isinstance(strict.imports.enroll("staff", rows, SPACE)[0], ConsentMissing)
    with pytest.raises(ConsentMissing):
        strict.persons.create("staff", "ada", metadata or {})
    assert strict.persons.page("staff", None, 9).items == []
    assert "person.enrolled" not in actions(strict)


@pytest.mark.parametrize(
    ("consent", "text"),
    [
        ("yes", "metadata.consent is 'yes', not an object"),
        (True, "metadata.consent is true, not an object"),
        ({"expires": "2029-11-26"}, "metadata.consent.reference is null, not a text"),
        ({"reference": " "}, "metadata.consent.reference has 0 characters"),
        ({"reference": "f" * 301}, "metadata.consent.reference has 301 characters"),
        (
            {"reference": "f", "expires": "01.02.2030"},
            "metadata.consent.expires is '01.02.2030', not a day and not a time with its zone",
        ),
        ({"reference": "f", "expires": 20300201}, "consent.expires is 20300201, not a day"),
        ({"reference": "f", "expires": "9" * 99}, f"expires is '{'9' * 40}…', not a day"),
        (
            {"reference": "f", "expires": "2020-01-01"},
            "'ada' that is valid now, and metadata.consent.expires is '2020-01-01'",
        ),
        ({"reference": "f", "withdrawn": "yes"}, "withdrawn is 'yes', not true or false"),
        ({"reference": "f", "withdrawn": True}, "metadata.consent.withdrawn is true: this"),
    ],
)
def test_a_refusal_names_the_member_of_the_call(strict: Store, consent: Any, text: str) -> None:
    """And says nothing of a person who does not exist."""
    metadata = {"consent": consent}
    refusals = [strict.imports.enroll("staff", [PersonTemplate("ada", metadata, NEW[0])], SPACE)[0]]
    store_person(strict, "staff", "bob", YEAR, NEW)
    for call in (
        lambda: store_person(strict, "staff", "ada", metadata, NEW),
        lambda: strict.persons.create("staff", "ada", metadata),
        lambda: strict.persons.update("staff", "bob", metadata),
    ):
        try:
            call()
        except ConsentMissing as error:
            refusals.append(error)
    ended = consent_until(metadata) is not None  # then a person's metadata may be replaced by it
    assert len(refusals) == (3 if ended else 4)
    for refusal in refusals:
        assert isinstance(refusal, ConsentMissing)
        assert text in refusal.detail
        assert "deleted soon" not in refusal.detail


def test_one_consent_is_for_further_photos(strict: Store) -> None:
    store_person(strict, "staff", "ada", YEAR, NEW)
    store_person(strict, "staff", "ada", None, NEW)
    strict.imports.enroll("staff", [PersonTemplate("ada", None, NEW[0])], SPACE)
    assert strict.persons.get("staff", "ada").consent_until == END
    recorded = [one.members for one in strict.audit.latest(50)]
    (entry,) = [one for one in recorded if one["action"] == "consent.recorded"]
    assert entry["details"] == {"last_day": "2027-03-01"}
    assert "form 17" not in str(recorded)


def test_rows_are_refused_one_by_one(strict: Store) -> None:
    store_person(strict, "staff", "ada", YEAR, NEW)
    other = template(np.eye(DIMENSION, dtype=np.float32)[1], "another photo")
    before = strict.persons.get("staff", "ada")
    rows = [
        PersonTemplate("bob", None, NEW[0]),  # the consent is in a later row
        PersonTemplate("ada", {}, other),
        PersonTemplate("eve", None, NEW[0]),
        PersonTemplate("bob", YEAR, other),
        PersonTemplate("ada", None, NEW[0]),
    ]
    # Nothing beyond the first that is refused is stored, so the consent of bob's is not, either.
    (first,) = strict.imports.enroll("staff", rows, SPACE, until_refused=True)
    assert isinstance(first, ConsentMissing)
    assert strict.persons.page("staff", None, 9).items == [before]
    missing = [type(one) for one in strict.imports.refused("staff", rows)]
    answers = [type(one) for one in strict.imports.enroll("staff", rows, SPACE)]
    assert missing == [type(None), NoConsent, NoConsent, type(None), type(None)]
    assert answers == [str, NoConsent, NoConsent, str, type(None)]
    items = strict.persons.page("staff", None, 9).items
    assert [(one.person_id, one.templates) for one in items] == [("ada", 1), ("bob", 2)]
    assert strict.persons.get("staff", "ada").metadata == YEAR


def test_one_that_has_ended_is_not_enough(strict: Store) -> None:
    store_person(strict, "staff", "ada", YEAR, NEW)
    strict.database.clock = lambda: NOW + timedelta(days=366)
    for metadata in (None, YEAR):
        with pytest.raises(ConsentMissing, match="has ended"):
            store_person(strict, "staff", "ada", metadata, NEW)
    rows = [PersonTemplate("ada", None, NEW[0])]
    assert isinstance(strict.imports.enroll("staff", rows, SPACE)[0], ConsentMissing)
    new = {"consent": {"reference": "form 18"}}
    assert store_person(strict, "staff", "ada", new, NEW)


def test_metadata_without_a_consent_does_not_replace_one(strict: Store) -> None:
    store_person(strict, "staff", "ada", YEAR, NEW)
    with pytest.raises(ConsentMissing):
        strict.persons.update("staff", "ada", {"team": "day"})
    assert strict.persons.get("staff", "ada").metadata == YEAR


def test_faces_move_only_to_persons_with_one(strict: Store) -> None:
    (stored,) = store_person(strict, "staff", "ada", YEAR, NEW)
    strict.persons.create("staff", "bob", YEAR)
    with pytest.raises(ConsentMissing):
        strict.corrections.move_face("staff", stored.face.face_id, "nobody")
    strict.persons.update("staff", "bob", GONE)
    with pytest.raises(ConsentMissing):
        strict.corrections.move_face("staff", stored.face.face_id, "bob")
    with pytest.raises(ConsentMissing):
        strict.corrections.merge_persons("staff", "ada", "bob")


def test_neither_a_merge_nor_a_move_undoes_a_withdrawal(strict: Store) -> None:
    (stored,) = store_person(strict, "staff", "ada", YEAR, NEW)
    strict.persons.create("staff", "ada-2", YEAR)
    strict.persons.update("staff", "ada", GONE)
    with pytest.raises(ConsentMissing, match="'ada' has ended"):
        strict.corrections.merge_persons("staff", "ada", "ada-2")
    with pytest.raises(ConsentMissing, match="'ada' has ended"):
        strict.corrections.move_face("staff", stored.face.face_id, "ada-2")
    assert strict.persons.get("staff", "ada").consent_until == WITHDRAWN
    strict.persons.update("staff", "ada", AGAIN)
    assert strict.corrections.merge_persons("staff", "ada", "ada-2").templates == 1


def test_a_list_that_is_sent_again_does_not_revive_a_withdrawn_one(strict: Store) -> None:
    store_person(strict, "staff", "ada", YEAR, NEW)
    strict.persons.update("staff", "ada", GONE)
    same = {"consent": {**YEAR["consent"], "expires": "2028-01-01"}}
    for call in (
        lambda: store_person(strict, "staff", "ada", same, NEW),
        lambda: strict.persons.update("staff", "ada", same),
    ):
        with pytest.raises(ConsentMissing, match="'ada' has withdrawn the consent"):
            call()
    rows = [PersonTemplate("ada", metadata, NEW[0]) for metadata in (same, None)]
    for found in (
        strict.imports.enroll("staff", rows, SPACE),
        strict.imports.refused("staff", rows),
    ):
        assert [type(one) for one in found] == [ConsentMissing, ConsentMissing]
    assert strict.persons.get("staff", "ada").consent_until == WITHDRAWN
    rows = [PersonTemplate("ada", metadata, NEW[0]) for metadata in (AGAIN, None)]
    assert strict.imports.enroll("staff", rows, SPACE) == [None, None]
    assert actions(strict).count("consent.recorded") == 2


@pytest.mark.parametrize("end", ["consent_ended", "by_call", "renamed", "replaced", "by_another"])
def test_a_withdrawn_one_is_remembered_when_the_metadata_has_it_no_more(
    strict: Store, end: str
) -> None:
    """The list that is imported every night still has it."""
    store_person(strict, "staff", "ada", YEAR, NEW)
    store_person(strict, "staff", "bob", YEAR, [template(np.eye(DIMENSION)[1], "bob's photo")])
    rule = expiry_of(strict.collections.get("staff"), NOW)
    if end == "by_call":
        strict.persons.delete("staff", "ada", "consent_withdrawn")
    elif end == "by_another":
        other = {"consent": {"reference": "letter of withdrawal", "withdrawn": True}}
        strict.persons.update("staff", "ada", other)
    else:
        strict.persons.update("staff", "ada", GONE)
    if end == "consent_ended":
        strict.retention.delete_expired("staff", ["ada"], lambda _: rule)
    elif end == "renamed":
        strict.persons.update("staff", "ada", new_id="ada-2")
    elif end == "replaced":
        strict.persons.update("staff", "ada", AGAIN)

    row = PersonTemplate("ada", YEAR, NEW[0])
    refused = [
        strict.imports.enroll("staff", [row], SPACE)[0], strict.imports.refused("staff", [row])[0]
    ]  # fmt: skip
    for call in (
        lambda: store_person(strict, "staff", "ada", YEAR, NEW),
        lambda: strict.persons.create("staff", "ada", YEAR),
        lambda: strict.persons.update("staff", "ada", YEAR),
    ):
        try:
            call()
        except (ConsentMissing, PersonExists, PersonNotFound) as error:
            refused.append(error)
    assert len(refused) == 5
    text = "'ada' has withdrawn the consent"
    assert sum(isinstance(one, ConsentMissing) and text in one.detail for one in refused) >= 3
    strict.imports.enroll("staff", [PersonTemplate("ada", AGAIN, NEW[0])], SPACE)
    assert strict.persons.get("staff", "ada").consent_until == END
    assert strict.persons.get("staff", "bob").consent_until == END


def test_a_rename_makes_no_withdrawn_one_valid(strict: Store) -> None:
    """A list of before the withdrawal is imported under another id, which is corrected then."""
    strict.persons.create("staff", "ada", YEAR)
    strict.persons.delete("staff", "ada", "consent_withdrawn")
    strict.persons.create("staff", "ada-2", YEAR)
    with pytest.raises(ConsentMissing, match="'ada' has withdrawn"):
        strict.persons.update("staff", "ada-2", new_id="ada")
    strict.persons.update("staff", "ada-2", AGAIN, new_id="ada")
    assert strict.persons.get("staff", "ada").consent_until == END


def test_ids_that_differ_in_composition_only_share_what_is_remembered(strict: Store) -> None:
    """Earlier versions stored such ids as two persons."""
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    for person in (composed, "other"):
        strict.persons.create("staff", person, YEAR)
        strict.persons.update("staff", person, GONE)
    with strict.database.writing() as connection:
        other = persons.c.person_id == "other"
        connection.execute(update(persons).where(other).values(person_id=decomposed))
        query = select(persons.c.id).where(persons.c.person_id == decomposed)
        key = connection.execute(query).scalar_one()
        with pytest.raises(ConsentMissing, match="has withdrawn"):
            keep_consent(connection, get_collection(connection, "staff"), key, YEAR)
    rule = expiry_of(strict.collections.get("staff"), NOW)
    strict.retention.delete_expired("staff", [composed, decomposed], lambda _: rule)
    assert strict.persons.page("staff", None, 9).items == []


def test_a_reference_is_the_same_however_it_is_composed(strict: Store) -> None:
    composed, decomposed = ({"reference": f"M{u}ller 17"} for u in ("\u00fc", "u\u0308"))
    strict.persons.create("staff", "ada", {"consent": composed})
    strict.persons.update("staff", "ada", {"consent": {**composed, "withdrawn": True}})
    with pytest.raises(ConsentMissing, match="has withdrawn"):
        strict.persons.update("staff", "ada", {"consent": decomposed})


def test_a_backup_has_what_is_remembered(strict: Store, tmp_path: Path) -> None:
    strict.persons.create("staff", "ada", YEAR)
    strict.persons.delete("staff", "ada", "consent_withdrawn")
    other = open_store(f"sqlite:///{tmp_path / 'other.db'}")
    load(other.database.engine, dump(strict.database.engine), replace=True)
    other.database.clock = lambda: NOW
    with pytest.raises(ConsentMissing, match="has withdrawn"):
        other.persons.create("staff", "ada", YEAR)
    other.persons.create("staff", "ada", AGAIN)
    other.close()


def test_a_restore_undoes_no_withdrawal(strict: Store, tmp_path: Path) -> None:
    """Of those who were deleted since the backup, and of those who are still there."""
    for person in ("ada", "bob", "eve"):
        strict.persons.create("staff", person, YEAR)
    bodies = list(dump(strict.database.engine))
    strict.persons.update("staff", "ada", GONE)
    strict.persons.delete("staff", "bob", "consent_withdrawn")
    held = load(strict.database.engine, iter(bodies), replace=True)
    assert held.withdrawn == 2
    found = strict.persons.page("staff", None, 9).items
    until = {one.person_id: one.consent_until for one in found}
    assert until == {"ada": WITHDRAWN, "bob": WITHDRAWN, "eve": END}
    for person in ("ada", "bob"):
        with pytest.raises(ConsentMissing, match="has withdrawn"):
            strict.persons.update("staff", person, YEAR)
    assert strict.persons.get("staff", "ada").metadata == {
        "consent": {**YEAR["consent"], "withdrawn": True}
    }
    withdrawn = {"consent": {**YEAR["consent"], "withdrawn": True}}
    assert len(strict.persons.keys(strict.collections.get("staff"), withdrawn)) == 2, "the filter"
    elsewhere = open_store(f"sqlite:///{tmp_path / 'elsewhere.db'}")
    load(elsewhere.database.engine, dump(strict.database.engine), replace=True)
    assert elsewhere.persons.get("staff", "ada").consent_until == WITHDRAWN
    elsewhere.close()
    again = load(strict.database.engine, iter(bodies), replace=True)
    assert again.withdrawn == 2
    assert actions(strict).count("consent.withdrawn") == 5


@pytest.mark.parametrize("how", ["deleted", "merged", "made valid"])
def test_a_policy_that_is_off_for_a_while_forgets_no_withdrawal(strict: Store, how: str) -> None:
    for person in ("ada", "bob"):
        strict.persons.create("staff", person, YEAR)
    strict.persons.update("staff", "ada", GONE)
    strict.collections.update("staff", None, {"consent_required": None})
    if how == "deleted":
        strict.persons.delete("staff", "ada")
    elif how == "merged":
        strict.corrections.merge_persons("staff", "ada", "bob")
    if how == "made valid":
        strict.persons.update("staff", "ada", YEAR)
    else:
        strict.persons.create("staff", "ada", YEAR)
    with pytest.raises(ConsentMissing, match=r"1 persons .* withdrew before, such as 'ada'"):
        strict.collections.update("staff", None, {"consent_required": True})
    strict.persons.update("staff", "ada", AGAIN)
    strict.collections.update("staff", None, {"consent_required": True})


def test_an_ended_one_or_another_collection_s_is_not_remembered(strict: Store) -> None:
    strict.collections.create("guests", SPACE, DIMENSION, {}, {"consent_required": True})
    for collection in ("staff", "guests"):
        strict.persons.create(collection, "ada", YEAR)
    strict.persons.update("staff", "ada", GONE)
    strict.persons.delete("staff", "ada")
    strict.persons.delete("guests", "ada", "request_of_person")
    strict.persons.create("guests", "ada", YEAR)
    strict.persons.create("staff", "bob", YEAR)
    strict.persons.update("staff", "bob", ENDED)
    strict.persons.update("staff", "bob", YEAR)
    assert strict.persons.get("staff", "bob").consent_until == END


def test_a_withdrawn_one_is_found_by_the_rule_at_once(strict: Store) -> None:
    store_person(strict, "staff", "ada", YEAR, NEW)
    strict.persons.create("staff", "bob", YEAR)
    strict.persons.update("staff", "ada", GONE)
    assert "consent.withdrawn" in actions(strict)
    rule = expiry_of(strict.collections.get("staff"), NOW)
    assert strict.retention.expired("staff", rule, 9) == ["ada"]
    faces = strict.templates.page("staff", None, None, 9).items
    keys = [one.template_key for one in faces]
    found, gone = strict.templates.matchable(strict.collections.get("staff"), [*keys, 10**9])
    assert (found, gone) == ({}, {10**9})
    assert list(strict.templates.by_key(keys)) == keys
    strict.retention.delete_expired("staff", ["ada", "bob"], lambda _: rule)
    assert [one.person_id for one in strict.persons.page("staff", None, 9).items] == ["bob"]
    entry = strict.audit.latest(1)[0].members
    assert entry["details"] == {"templates": 1, "reason": "consent_ended"}


def test_a_policy_that_would_erase_persons_is_refused(store: Store) -> None:
    store.database.clock = lambda: NOW
    for number in range(12):
        store.persons.create("default", f"p{number}", {})
    store.persons.create("default", "ada", YEAR)
    before = store.collections.get("default").policy
    with pytest.raises(ConsentMissing, match="12 persons") as refused:
        store.collections.update("default", None, {"consent_required": True})
    assert refused.value.extra["person_ids"][:2] == ["p0", "p1"]
    assert store.collections.get("default").policy == before
    for number in range(12):
        store.persons.update("default", f"p{number}", YEAR)
    store.collections.update("default", None, {"consent_required": True})
    assert "consent.recorded" in actions(store)


def test_other_collections_need_none(store: Store) -> None:
    store.database.clock = lambda: NOW
    for metadata in ({}, ENDED, GONE, {"consent": "yes"}):
        store.persons.create("default", f"p{len(str(metadata))}", metadata)
    rule = expiry_of(store.collections.get("default"), NOW)
    assert not rule
    assert store.retention.expired("default", rule, 9) == []


def test_the_end_is_derived_again_from_metadata(store: Store) -> None:
    """As the migration and a restore do."""
    store.persons.create("default", "ada", YEAR)
    store.persons.create("default", "bob", {"note": '"consent"'})
    with store.database.writing() as connection:
        connection.execute(update(persons).values(consent_until=None))
        rebuild_consents(connection)
    ends = [one.consent_until for one in store.persons.page("default", None, 9).items]
    assert ends == [END, None]


def test_metadata_that_breaks_the_rules_is_still_refused_as_such(strict: Store) -> None:
    with pytest.raises(InvalidRequest, match="finite"):
        strict.persons.create("staff", "ada", {**YEAR, "x": float("nan")})
