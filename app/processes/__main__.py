"""The parent, which the command `serve` turns into (exec), so that it holds none of what serving
needs: `python -m app.processes ARGUMENTS`, a JSON object."""

import json
import sys

from app.processes.children import command_of
from app.processes.parent import Parent
from app.processes.starting import Plan, announce, listeners_of
from app.settings import LogFormat
from app.telemetry.logs import set_up_logs


def main(arguments: str) -> int:
    """The exit status."""
    given = json.loads(arguments)
    set_up_logs(LogFormat(given["log_format"]), given["log_level"], with_process=True)
    networks = given.get("networks")
    plan = Plan(
        command_of(json.dumps(given["child"])),
        given["count"],
        given["drain_seconds"],
        given["request_timeout"] + 10.0,
        networks=command_of(json.dumps(networks)) if networks else None,
    )
    return Parent(plan, listeners_of(given["listeners"]), announce).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
