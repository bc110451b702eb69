"""Cores and memory to use: the machine's, and no more than the container is given."""

import os
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from app.errors import StartupError
from app.inference.machine import ENOUGH, DescriptorLimit, usable_cores, usable_memory

ALLOWED = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", ALLOWED), ("50000 100000", 1), ("100000 100000", 1),
     ("6400000 100000", ALLOWED), ("150000 100000", min(2, ALLOWED)), ("nonsense", ALLOWED),
     ("0 0", ALLOWED)],
)  # fmt: skip
def test_version_2(tmp_path: Path, limit: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{limit}\n")
    assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("-1", ALLOWED), ("70000", 1), ("150000", min(2, ALLOWED))]
)
def test_version_1(tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(tmp_path) == cores


def test_no_control_group(tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "absent") == ALLOWED


MACHINE = usable_memory(Path("/nowhere"))


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
@pytest.mark.parametrize(
    ("limit", "usable"),
    [("1000000\n", 1_000_000), ("max\n", MACHINE), ("9223372036854771712\n", MACHINE)],
)
def test_a_control_groups_limit_of_memory(
    tmp_path: Path, name: str, limit: str, usable: int
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(limit)
    assert usable_memory(tmp_path) == usable


@pytest.mark.parametrize(
    ("groups", "place"),
    [("0::/system.slice/likeness.service", ""),
     ("3:cpu,cpuacct:/other.slice\n2:memory:/system.slice/likeness.service\n0::/", "memory")],
)  # fmt: skip
@pytest.mark.parametrize("limited", ["system.slice", "system.slice/likeness.service"])
def test_a_unit_s_limit_of_memory(tmp_path: Path, groups: str, place: str, limited: str) -> None:
    """systemd makes its group below the root, and around it that of the slice."""
    own = tmp_path / "own"
    own.write_text(f"{groups}\n")
    name = "memory.limit_in_bytes" if place else "memory.max"
    for folder in ("system.slice/likeness.service", "other.slice"):
        (tmp_path / place / folder).mkdir(parents=True)
    (tmp_path / place / "other.slice" / name).write_text("1\n")
    assert usable_memory(tmp_path, own) == MACHINE
    (tmp_path / place / limited / name).write_text("1000000\n")
    assert usable_memory(tmp_path, own) == 1_000_000


@pytest.mark.parametrize(("outer", "inner"), [("max", "100000"), ("100000", "max")])
def test_a_unit_s_quota(tmp_path: Path, outer: str, inner: str) -> None:
    own = tmp_path / "own"
    own.write_text("0::/system.slice/likeness.service\n")
    unit = tmp_path / "system.slice" / "likeness.service"
    unit.mkdir(parents=True)
    assert usable_cores(tmp_path, own) == ALLOWED
    (unit.parent / "cpu.max").write_text(f"{outer} 100000\n")
    (unit / "cpu.max").write_text(f"{inner} 100000\n")
    assert usable_cores(tmp_path, own) == 1


def test_no_control_group_limits_memory() -> None:
    assert MACHINE > 2**28


RAISE = "from app.inference.machine import DescriptorLimit as L; print(L.read(), L.read().raised())"


def run_under(soft: int, hard: int) -> str:
    limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
    return subprocess.run(
        [sys.executable, "-c", RAISE], preexec_fn=limit, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    before, after = "64, which serve raises to 300", "300, which serve raises to 300"
    assert run_under(64, 300) == f"{before} {after}"


def test_a_low_limit_is_warned_of() -> None:
    warning = DescriptorLimit(64, 256).warning()
    assert warning is not None
    assert "At most 256 files" in warning
    assert f"ulimit -Hn {ENOUGH}" in warning
    assert DescriptorLimit(64, ENOUGH).warning() is None
    assert DescriptorLimit(64, resource.RLIM_INFINITY).warning() is None


def test_too_few_for_what_needs_them_end_the_start() -> None:
    with pytest.raises(StartupError, match=r"At most 256 files .* a crowd needs 257.*nofile=257"):
        DescriptorLimit(256, 256).require(257, "a crowd")
    DescriptorLimit(256, 256).require(256, "a crowd")
    DescriptorLimit(resource.RLIM_INFINITY, resource.RLIM_INFINITY).require(10**6, "a crowd")
