"""The limit of open files: raised by the service itself, and named where it is too low."""

import resource
import subprocess
import sys
from functools import partial

from app.cli.descriptors import ENOUGH, DescriptorLimit

RAISE = "from app.cli.descriptors import DescriptorLimit as L; print(L.read(), L.read().raised())"


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
