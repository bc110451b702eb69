"""A stored quality is read member by member: what is no measure is not taken for one."""

from dataclasses import asdict, fields

import pytest

from app.types import Quality

MEASURED = Quality(100, 1.5, -2.0, 0.0, 300.0, 0.5, 0.9)
STORED = asdict(MEASURED)


@pytest.mark.parametrize("more", [{}, {"embedding_norm": 20.5, "liveness": 0.5}])
def test_what_was_stored_is_read(more: dict[str, float]) -> None:
    read = Quality.read({**STORED, **more})
    assert read == Quality(**{**STORED, **more})


def test_every_measure_is_read() -> None:
    """Also one that is added to `Quality` later."""
    every = Quality(**{field.name: index for index, field in enumerate(fields(Quality))})
    assert Quality.read(asdict(every)) == every


def test_members_of_another_version_are_left_aside() -> None:
    without = {
        name: STORED[name] for name in STORED if not name.startswith(("liveness", "quality"))
    }
    assert Quality.read({**without, "occlusion": 0.1}) == MEASURED


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"embedding_norm": 20.0},
        {**STORED, "yaw": None},
        {**STORED, "yaw": "12"},
        {**STORED, "yaw": True},
        {**STORED, "yaw": float("nan")},
        {**STORED, "yaw": 10**400},
        {name: STORED[name] for name in STORED if name != "sharpness"},
    ],
)
def test_nothing_is_known_without_every_measure(stored: dict[str, object]) -> None:
    assert Quality.read(stored) is None


@pytest.mark.parametrize("norm", ["20", True, float("inf"), [20], 10**400])
def test_an_optional_member_that_is_no_number_is_unknown(norm: object) -> None:
    assert Quality.read({**STORED, "embedding_norm": norm}) == MEASURED
