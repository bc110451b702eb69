"""The gallery against a dictionary: every kind of change, maintenance, restarts, a second process,
and interruptions wherever a lock is taken or released.

    pytest -s -m "" tests/gallery/test_gallery_model.py    # says how many steps there were
    LIKENESS_MODEL_EXAMPLES=150 pytest -s -m slow tests/gallery/test_gallery_model.py
    LIKENESS_MODEL_SHRINK=1 pytest ...    # after a failure: look for a shorter one, minutes

Each run takes the same steps, unless LIKENESS_MODEL_EXAMPLES asks for so many random examples.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from app.store.backends import create_engine
from app.store.schema import migrate
from tests.gallery.model.host import HostProcess
from tests.gallery.model.machine import GalleryMachine

EXAMPLES = int(os.environ.get("LIKENESS_MODEL_EXAMPLES", "0"))
# To look for a shorter failure takes minutes; the first one is reported at once.
SHRINKS = os.environ.get("LIKENESS_MODEL_SHRINK", "") not in {"", "0"}
PHASES = list(Phase) if SHRINKS else [Phase.explicit, Phase.reuse, Phase.generate]
CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, to be copied."""
    path = tmp_path_factory.mktemp("model") / "empty.db"
    engine = create_engine(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


@pytest.fixture(scope="module")
def process() -> Iterator[HostProcess]:
    process = HostProcess()
    yield process
    process.stop()


def drive(machine: type[GalleryMachine], *, examples: int, steps: int, same: bool) -> None:
    """Run a machine, and say what it did; with `same` the same steps each time."""
    machine.steps.clear()
    machine.interleavings.clear()
    how = settings(
        max_examples=examples, stateful_step_count=steps, derandomize=same, deadline=None,
        database=None, print_blob=True, suppress_health_check=CHECKS, phases=PHASES,
        report_multiple_bugs=False,
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=how)
    points = {(first, where) for first, where, _ in machine.interleavings}
    report = (
        f"{machine.__name__}: {machine.steps.total()} steps, "
        f"{machine.interleavings.total()} interleavings ({len(machine.interleavings)} different, "
        f"at {len(points)} points of {len({first for first, _ in points})} operations)"
    )
    sys.stdout.write(f"\n{report}\n")
    assert machine.interleavings


def machine_of(name: str, *, migrated: Path, **options: object) -> type[GalleryMachine]:
    return type(name, (GalleryMachine,), {"migrated": migrated, **options})


@pytest.mark.parametrize(
    "encrypted",
    [pytest.param(False, id="plain"), pytest.param(True, id="encrypted", marks=pytest.mark.slow)],
)
def test_a_few_steps(migrated: Path, encrypted: bool) -> None:
    name = "Encrypted" if encrypted else "Plain"
    machine = machine_of(name, migrated=migrated, encrypted=encrypted)
    drive(machine, examples=2, steps=15, same=True)


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_many_steps(migrated: Path, encrypted: bool) -> None:
    name = "Encrypted" if encrypted else "Plain"
    machine = machine_of(name, migrated=migrated, encrypted=encrypted)
    drive(machine, examples=EXAMPLES or 15, steps=40, same=not EXAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted"])
def test_beside_a_second_process(migrated: Path, process: HostProcess, encrypted: bool) -> None:
    name = "EncryptedProcesses" if encrypted else "Processes"
    machine = machine_of(name, migrated=migrated, encrypted=encrypted, process=process)
    drive(machine, examples=EXAMPLES or 8, steps=40, same=not EXAMPLES)
