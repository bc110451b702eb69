"""Tables of medians and rates, as Markdown to be pasted."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray


def show_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """As Markdown, to be pasted."""
    heads = list(columns)
    print(f"{title}\n")
    for cells in (heads, ["---"] * len(heads), *rows):
        print(f"| {' | '.join(cells)} |")
    print()


def times_of(work: Callable[[], Any], count: int) -> NDArray[np.float64]:
    """Seconds of `count` runs after one that is not counted."""
    work()
    spent = []
    for _ in range(count):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return np.array(spent)


def rate_of_threads(work: Callable[[], Any], threads: int, seconds: float) -> float:
    ends = time.perf_counter() + seconds

    def many(_: int) -> int:
        count = 0
        while time.perf_counter() < ends:
            work()
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(many, range(threads)))
    return done / (seconds + time.perf_counter() - ends)
