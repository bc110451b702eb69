"""`python -m tests.hostile [--processes N] [WORD ...]`: the table of attacks."""

import argparse
import itertools
import os
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.hostile import attacks as _attacks  # noqa: F401 - they add themselves to the list
from tests.hostile.run import Verdict, run
from tests.hostile.scenario import ATTACKS, CONTROL
from tests.hostile.service import memory_limit, running

SCHEMES = ("http", "https")


def main() -> int:
    """Run the control and the attacks whose name holds one of the words, against a service of each
    number of processes and each scheme; 1 where one succeeded."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile")
    parser.add_argument("words", nargs="*", metavar="WORD", help="of the names of attacks")
    parser.add_argument(
        "--processes", action="append", help="may be repeated; default: LIKENESS_PROCESSES, or 1"
    )
    parser.add_argument("--scheme", choices=SCHEMES, help="of one service only")
    options = parser.parse_args()
    counts = options.processes or [os.environ.get("LIKENESS_PROCESSES", "1")]
    schemes = [options.scheme] if options.scheme else SCHEMES
    words = [word.lower() for word in options.words]
    wanted = [a for a in ATTACKS if not words or any(word in a.name.lower() for word in words)]
    console, verdicts = Console(width=170), []
    for count, scheme in itertools.product(counts, schemes):
        chosen = [one for one in wanted if scheme in one.schemes]
        with (
            tempfile.TemporaryDirectory(prefix="likeness-hostile-") as folder,
            running(Path(folder), scheme, LIKENESS_PROCESSES=count) as (target, process),
        ):
            for attack in [CONTROL, *chosen] if chosen else []:
                verdict = run(attack, target, process)
                verdict.attack = f"{scheme}, {count}: {verdict.attack}"
                verdicts.append(verdict)
                console.print(f"{verdict.attack}: {verdict.faults or 'withstood'}", highlight=False)
    console.print(table(verdicts))
    return int(any(verdict.faults for verdict in verdicts))


def table(verdicts: list[Verdict]) -> Table:
    """One row an attack."""
    shown = Table(
        "attack", "requests", "s", "/livez p100 ms", "its CPU ms", "lag ms", "noise ms",
        "RSS MiB", "verdict",
        caption=f"The service ran with {memory_limit()}.",
    )  # fmt: skip
    for one in verdicts:
        times = [one.livez, one.livez_work, one.seen.lag, one.seen.noise]
        numbers = [one.seconds, *(1000 * time for time in times), one.seen.peak_mib]
        verdict = "; ".join(one.faults) or "withstood"
        shown.add_row(one.attack, str(one.requests), *(f"{n:.0f}" for n in numbers), verdict)
    return shown


if __name__ == "__main__":
    sys.exit(main())
