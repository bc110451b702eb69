"""The index of metadata: finds the persons who have a member with a value without reading them all.

A term is a 64-bit digest of a collection, a member's name and its value in a normal form, so equal
values have the same term. Terms are written in the transaction that writes the metadata, and
deleted with their person; a backup leaves them out. Two of a million different terms share a digest
with a probability of 3e-8. A change of how terms are made needs a migration that calls
`rebuild_terms`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, delete, func, literal, select, text

from app.index.port import Ids
from app.store.backends import backend_of
from app.store.sql.tables import metadata_terms, persons
from app.types import JsonObject

PERSONS_AT_ONCE = 10_000
PAIRS_AT_ONCE = 1_000_000
# Limits for counting terms to find the rarest: first few, then as many as are worth counting.
COUNTED = (1_000, 20_000)


def terms_of(collection: int, metadata: JsonObject) -> list[int]:
    """The terms of metadata in the collection with that key, one for each member."""
    return [_term(collection, name, value) for name, value in metadata.items()]


def _term(collection: int, name: str, value: Any) -> int:
    content = json.dumps([collection, name, _one_form(value)], sort_keys=True)
    digest = hashlib.blake2b(content.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _one_form(value: Any) -> Any:
    """The normal form of a value: equal numbers (1 and 1.0) are the same; true is not a number."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, list):
        return [_one_form(one) for one in value]
    if isinstance(value, dict):
        return {name: _one_form(one) for name, one in value.items()}
    return value


# --- writing ----------------------------------------------------------------------------------


def index_new(
    connection: Connection, collection: int, metadata: Iterable[tuple[int, JsonObject]]
) -> None:
    """Index new persons, given by their keys."""
    _insert(
        connection,
        sorted((term, person) for person, one in metadata for term in terms_of(collection, one)),
    )


def index_again(connection: Connection, collection: int, person: int, metadata: JsonObject) -> None:
    """Index a person whose metadata has changed."""
    mine = metadata_terms.c.person == person
    before = set(connection.execute(select(metadata_terms.c.term).where(mine)).scalars())
    after = set(terms_of(collection, metadata))
    if gone := before - after:
        connection.execute(delete(metadata_terms).where(mine, metadata_terms.c.term.in_(gone)))
    _insert(connection, sorted((term, person) for term in after - before))


def rebuild_terms(connection: Connection) -> None:
    """Build the index of all persons again."""
    connection.execute(delete(metadata_terms))
    pairs: list[tuple[int, int]] = []
    for page in _pages(connection):
        pairs += ((t, row.id) for row in page for t in terms_of(row.collection, row.metadata))
        if len(pairs) >= PAIRS_AT_ONCE:
            _insert(connection, sorted(pairs))
            pairs.clear()
    _insert(connection, sorted(pairs))


def wrong_terms(connection: Connection) -> int:
    """The number of persons whose terms differ from their metadata, plus those of no person."""
    wrong, known = 0, 0
    for page in _pages(connection):
        query = select(metadata_terms.c.person, metadata_terms.c.term).where(
            metadata_terms.c.person.between(page[0].id, page[-1].id)
        )
        held: dict[int, set[int]] = {}
        for person, term in connection.execute(query):
            held.setdefault(person, set()).add(term)
        for row in page:
            mine = held.get(row.id, set())
            known += len(mine)
            wrong += mine != set(terms_of(row.collection, row.metadata))
    total = connection.execute(select(func.count()).select_from(metadata_terms)).scalar_one()
    return wrong + int(total) - known


def _insert(connection: Connection, pairs: list[tuple[int, int]]) -> None:
    """Insert pairs of a term and a person, sorted so that they are written to neighbouring
    pages."""
    if pairs:
        backend_of(connection.engine).insert_pairs(connection, metadata_terms, pairs)


def _pages(connection: Connection) -> Iterator[Sequence[Any]]:
    """Collection, key and metadata of all persons by key, one page at a time."""
    last = 0
    query = select(persons.c.collection, persons.c.id, persons.c.metadata).order_by(persons.c.id)
    while rows := connection.execute(query.where(persons.c.id > last).limit(PERSONS_AT_ONCE)).all():
        yield rows
        last = rows[-1].id


# --- finding ----------------------------------------------------------------------------------


def find_persons(connection: Connection, collection: int, metadata: JsonObject) -> Ids:
    """The rising keys of the persons whose metadata has every given member with an equal value."""
    backend = backend_of(connection.engine)
    terms = sorted(set(terms_of(collection, metadata)))
    if not terms:
        query = f"SELECT {backend.joined('id')} FROM persons WHERE collection = :t0"  # noqa: S608
        return _keys(connection, query, [collection])
    # The rarest term first: each of the others costs one lookup for each of its persons.
    rarest = _rarest(connection, terms)
    terms = [rarest, *(term for term in terms if term != rarest)]
    others = " ".join(
        f"JOIN metadata_terms t{i} {backend.BY_TERM} "
        f"ON t{i}.term = :t{i} AND t{i}.person = t0.person"
        for i in range(1, len(terms))
    )
    joined = backend.joined("t0.person")
    # The statement contains no text of the filter.
    query = f"SELECT {joined} FROM metadata_terms t0 {others} WHERE t0.term = :t0"  # noqa: S608
    return _keys(connection, query, terms)


def term_conditions(collection: int, metadata: JsonObject) -> list[Any]:
    """SQL conditions: the person's metadata has every given member with an equal value."""
    of_term = select(metadata_terms.c.person)
    return [
        persons.c.id.in_(of_term.where(metadata_terms.c.term == term))
        for term in terms_of(collection, metadata)
    ]


def _keys(connection: Connection, query: str, values: list[int]) -> Ids:
    """Keys read as one text, because ten thousand rows of one number take ten times as long."""
    parameters = {f"t{i}": value for i, value in enumerate(values)}
    keys = connection.execute(text(query), parameters).scalar_one()
    return np.sort(np.fromstring(keys or "", np.int64, sep=","))


def _rarest(connection: Connection, terms: list[int]) -> int:
    """The term that the fewest persons have, as far as the limits of counting show it."""
    counts = {terms[0]: 0}
    for most in COUNTED:
        if len(terms) > 1:
            counts = {term: _count(connection, term, most) for term in terms}
        if min(counts.values()) < most:
            break
    return min(counts, key=lambda term: counts[term])


def _count(connection: Connection, term: int, most: int) -> int:
    some = select(literal(1)).where(metadata_terms.c.term == term).limit(most).subquery()
    return int(connection.execute(select(func.count()).select_from(some)).scalar_one())
