"""Tables and the plot of `serve.py`."""

import statistics
from collections import Counter
from pathlib import Path

from contenders import PEER
from load_runs import Results, middle
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

console = Console(width=150)
CORE_HOUR_MS = 3_600_000


def show(results: Results, ceilings: list[float]) -> None:
    top = statistics.median(ceilings)
    alone = statistics.median(results.ceilings["one thread, p50 ms"])
    table = Table("load", "contender", "engine", "photos/s", "of ceiling", "x peer", "p50 ms",
                  "p90", "p99", "CPU ms per photo", "generator's", "peak MiB", "statuses",
                  title=f"closed loop; ceiling {top:.1f}/s, alone {alone:.1f} ms")  # fmt: skip
    for load in dict.fromkeys(run.load for run in results.runs):
        rates = {}
        for key in dict.fromkeys((run.contender, run.engine) for run in results.runs):
            mine = [r for r in results.runs if (r.contender, r.engine, r.load) == (*key, load)]
            rates[key] = middle(mine, "rate")
            statuses: Counter[str] = sum((Counter(run.statuses) for run in mine), Counter())
            table.add_row(
                load, *key, f"{rates[key]:.1f}", f"{rates[key] / top:.2f}",
                ratio_to_peer(results, load, rates[key]),
                *(f"{middle(mine, what):.1f}" for what in ("p50_ms", "p90_ms", "p99_ms")),
                f"{middle(mine, 'cpu_ms_each'):.1f}",
                f"{middle(mine, 'generator_cpu_ms_each'):.2f}",
                f"{max(run.peak_mib for run in mine):.0f}", str(dict(statuses)),
            )  # fmt: skip
    console.print(table)


def show_cost(results: Results, load: str) -> None:
    """Photos per hour of one core's time, each contender's own and in multiples of the peer's."""
    table = Table("contender", "engine", "CPU ms per photo", "photos per core-hour", "x peer",
                  title=f"cost, {load}")  # fmt: skip
    keys = dict.fromkeys((run.contender, run.engine) for run in results.runs)
    spent = {
        key: middle(
            [r for r in results.runs if (r.contender, r.engine, r.load) == (*key, load)],
            "cpu_ms_each",
        )
        for key in keys
    }
    theirs = next((ms for (name, _), ms in spent.items() if name == PEER), None)
    for key, ms in spent.items():
        ratio = "–" if theirs is None else f"{theirs / ms:.2f}"
        table.add_row(*key, f"{ms:.1f}", f"{CORE_HOUR_MS / ms:,.0f}", ratio)
    console.print(table)


def ratio_to_peer(results: Results, load: str, rate: float) -> str:
    peers = [r for r in results.runs if (r.contender, r.load) == (PEER, load)]
    theirs = middle(peers, "rate") if peers else 0
    return f"{rate / theirs:.2f}" if theirs else "–"


def plot(results: Results, path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    rate, latency = figure.subplots(1, 2)
    closed = [run for run in results.runs if run.load.endswith("clients")]
    loads = list(dict.fromkeys(run.load for run in closed))
    for key in dict.fromkeys((run.contender, run.engine) for run in closed):
        mine = [[r for r in closed if (r.contender, r.engine, r.load) == (*key, load)]
                for load in loads]  # fmt: skip
        name = ", ".join(key)
        rate.plot(loads, [middle(runs, "rate") for runs in mine], marker="o", label=name)
        latency.plot(loads, [middle(runs, "p99_ms") for runs in mine], marker="o", label=name)
    best = next(v for k, v in results.ceilings.items() if k.startswith("best"))
    rate.axhline(statistics.median(best), linestyle="--", color="grey", label="raw ceiling")
    rate.set(ylabel="photos a second", ylim=(0, None))
    latency.set(ylabel="p99, ms", yscale="log")
    rate.legend()
    figure.savefig(path, dpi=120)
