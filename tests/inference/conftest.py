"""The networks themselves, run each time."""

from tests.remembered import networks_run_each_time  # noqa: F401 (pytest finds fixtures by name)
