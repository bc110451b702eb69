"""Rows judged together are judged as one after the other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from app.importing import local
from app.importing.local import LocalImport
from app.importing.options import ImportOptions, OnConflict
from app.importing.outcomes import Outcome
from app.importing.rows import Row
from app.services import Services, build_services
from app.settings import Settings

OPTIONS = ImportOptions(near_duplicate=0.9, on_conflict=OnConflict.SKIP)


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    services = build_services(Settings(data_dir=tmp_path / "data"))
    yield services
    services.close()


def run(services: Services, collection: str, rows: list[Row]) -> list[Outcome]:
    record = services.gallery.create_collection(collection, {})
    told: list[Outcome] = []
    LocalImport(services, record, OPTIONS).run(iter(rows), told.append)
    return told


def people(dimension: int) -> list[Row]:
    """Faces near their person's own, some nearly the same, some of them under another's name."""
    generator = np.random.default_rng(11)
    centres = generator.normal(size=(30, dimension))
    rows = []
    for index in range(240):
        person = int(generator.integers(30))
        spread = 0.15 if index % 5 == 0 else 0.7
        vector = centres[person] + spread * generator.normal(size=dimension)
        name = person if index % 9 else (person + 1) % 30
        rows.append(Row(f"t:{index}", f"p{name}", embedding=vector.astype(np.float32)))
    return rows


@pytest.mark.slow
def test_however_many_are_judged_together(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = people(services.pack.recogniser.dimension)
    results = {}
    monkeypatch.setattr(local, "SECONDS_A_TRANSACTION", 60.0)
    for together in (1, 7, 256):
        monkeypatch.setattr(local, "JUDGED_A_TRANSACTION", together)
        told = run(services, f"c{together}", rows)
        results[together] = [(one.result, one.reason, one.conflict_with) for one in told]
    assert results[1] == results[7] == results[256]
    reasons = {reason for _, reason, _ in results[1]}
    assert reasons == {"", "near_duplicate", "conflict"}


def test_one_s_own_near_face_counts_also_where_another_s_is_nearer(services: Services) -> None:
    """Twins: what the person has already is no conflict."""
    dimension = services.pack.recogniser.dimension
    probe = np.zeros(dimension, np.float32)
    probe[0] = 1
    own, other = probe.copy(), probe.copy()
    own[1], other[1] = 0.3, -0.2
    rows = [
        Row("1", "twin a", embedding=own),
        Row("2", "twin b", embedding=other),
        Row("3", "twin a", embedding=probe),
    ]
    told = run(services, "twins", rows)
    assert [one.reason for one in told] == ["", "conflict", "near_duplicate"]
    rows[1] = Row("2", "twin b", embedding=other)
    record = services.gallery.create_collection("both", {})
    LocalImport(services, record, ImportOptions()).run(iter(rows[:2]), lambda _: None)
    told = []
    LocalImport(services, record, OPTIONS).run(iter(rows[2:]), told.append)
    assert [one.reason for one in told] == ["near_duplicate"]
