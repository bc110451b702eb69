"""Patterns that say where the id of a person is in a path, such as {person_id}_*.jpg.

A regular expression would try all ways to divide a path among the wildcards, which takes minutes
for some patterns. Here the positions that the parts before the id can reach are found from the
left, those of the parts after it from the right: each place of the path is looked at once for each
part of the pattern.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from app.importing.source_rows import ImportSourceError

PERSON = "{person_id}"
MAX_WILDCARDS = 3  # for each, every path is gone through once more
_PARTS = re.compile(r"(\*+)")


class PathPattern:
    """{person_id} once, * for anything within a folder or file name, ** (or more stars) for
    anything; case does not matter. Raises ImportSourceError."""

    def __init__(self, pattern: str) -> None:
        if pattern.count(PERSON) != 1:
            raise ImportSourceError(
                f"A pattern must contain {PERSON} exactly once, as in {PERSON}_*.jpg; this one is "
                f"{pattern}."
            )
        if len(_PARTS.findall(pattern)) > MAX_WILDCARDS:
            raise ImportSourceError(
                f"A pattern may have at most {MAX_WILDCARDS} wildcards (* or **); this one is "
                f"{pattern}."
            )
        self.shown = pattern
        before, _, after = pattern.partition(PERSON)
        self._before, self._after = _PARTS.split(before), _PARTS.split(after[::-1])

    def person_of(self, path: str) -> str | None:
        """The id in a path, None if the path does not match. If it matches in several ways: the id
        in the last folder or file name that can contain one, and the longest there."""
        starts = sorted(_reached(self._before, path))
        ends = sorted(len(path) - place for place in _reached(self._after, path[::-1]))
        end_of_name = len(path)
        while end_of_name >= 0:
            begin = path.rfind("/", 0, end_of_name) + 1
            # The first start from `begin` on, and the last end up to that of the name.
            first, last = bisect_left(starts, begin), bisect_right(ends, end_of_name) - 1
            if first < len(starts) and last >= 0 and starts[first] < ends[last]:
                return path[starts[first] : ends[last]]
            end_of_name = begin - 1
        return None


def _reached(parts: Sequence[str], path: str) -> set[int]:
    """Where texts and wildcards, one after the other from the beginning of a path, can end."""
    reached = {0}
    for part in parts:
        if not reached:
            break
        if part.startswith("**"):
            reached = set(range(min(reached), len(path) + 1))
        elif part == "*":
            reached = _to_the_end_of_names(reached, path)
        elif part:
            text = re.compile(re.escape(part), re.IGNORECASE)
            found = (text.match(path, place) for place in reached)
            reached = {one.end() for one in found if one is not None}
    return reached


def _to_the_end_of_names(places: set[int], path: str) -> set[int]:
    """The places, and all after them up to the next slash."""
    found: set[int] = set()
    for place in sorted(places):
        if place not in found:  # else it is within the name of an earlier one
            slash = path.find("/", place)
            found.update(range(place, (len(path) if slash < 0 else slash) + 1))
    return found
