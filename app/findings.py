"""What pydantic finds wrong with a value, each place once and without the names that pydantic gives
to the parts of a union: `recogniser.std`, not `recogniser.std.float`."""

import re
from collections.abc import Sequence
from typing import Any

# How pydantic names a part of a union: `float`, `constrained-int`, `literal['auto']`.
_PART = re.compile(r"(constrained-)?(int|float|str|bool)|[a-z][\w-]*\[.*\]", re.DOTALL)
_UNKNOWN_NAME = "extra_forbidden"


def only_unknown_names(errors: Sequence[Any]) -> bool:
    """Whether nothing is wrong but names that are not known."""
    return all(item["type"] == _UNKNOWN_NAME for item in errors)


def findings(errors: Sequence[Any]) -> list[tuple[str, str]]:
    """The place and the message of each of `ValidationError.errors()`, in their order. A value that
    fits no part of a union is one finding: of the part that it fits best, or of them all."""
    messages: dict[str, list[str]] = {}
    of_a_part: set[str] = set()
    for item in errors:
        place, is_part = _place(item)
        message = str(item["msg"]).removeprefix("Value error, ").removesuffix(".")
        if item["type"] == _UNKNOWN_NAME:
            message = "There is no such field here; check its name, or leave it out"
        if message not in messages.setdefault(place, []):
            messages[place].append(message)
        if is_part:
            of_a_part.add(place)
    # Where something within the value is wrong, the value itself is of the right kind.
    within = {one for one in of_a_part for other in of_a_part if other.startswith(f"{one}.")}
    return [(place, _joined(found)) for place, found in messages.items() if place not in within]


def _place(item: Any) -> tuple[str, bool]:
    """The names of a finding's place, and whether it is of a part of a union."""
    location = item["loc"]
    # A name that the client chose may look like one of pydantic's.
    chosen = location[-1:] if item["type"] == _UNKNOWN_NAME else ()
    known = location[: len(location) - len(chosen)]
    kept = [one for one in known if isinstance(one, int) or not _PART.fullmatch(one)]
    return ".".join(map(str, (*kept, *chosen))), len(kept) < len(known)


def _joined(messages: list[str]) -> str:
    """One message: what all begin with is said once."""
    first, *others = texts = [one.split(" ") for one in messages]
    same = 0
    while others and all(one[: same + 1] == first[: same + 1] for one in others):
        same += 1
    return " ".join([*first[:same], " or ".join(" ".join(one[same:]) for one in texts)])
