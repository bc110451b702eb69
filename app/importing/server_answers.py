"""What a server answers to a remote import: an answer of Likeness, a refusal, or to ask again."""

import re
from contextlib import suppress
from typing import Any

import httpx

from app.importing.source_rows import ImportSourceError

LONGEST_PAUSE_S = 30.0
BUSY = (502, 503, 504)
# With Retry-After these are temporary: the upload was ended for being the slowest, or the key has
# reached a rate limit. Not so a quota of the day, which lasts longer than this waits.
LIMITED = (408, 429)
QUOTA = "quota_exceeded"


def is_temporary(answer: httpx.Response) -> bool:
    """Whether the same call may succeed in a moment."""
    limited = answer.status_code in LIMITED and "Retry-After" in answer.headers
    return answer.status_code in BUSY or (limited and _problem(answer).get("code") != QUOTA)


def pause(attempt: int, asked: str) -> float:
    """Seconds to wait after an attempt, counted from 0: as many as asked for, and more each time,
    because others may use what is free by then."""
    backoff = 0.5 * 2.0**attempt
    return min(max(backoff, float(asked)) if asked.isdecimal() else backoff, LONGEST_PAUSE_S)


def sendable(key: str) -> str:
    """A key without the line break that a file may end with. What HTTP cannot send is not quoted in
    the error, as httpx would: it is a secret."""
    if not re.fullmatch(r"[!-~]+", key.strip()):
        raise ImportSourceError(
            "The API key (--api-key, LIKENESS_API_KEY) contains characters other than "
            "printable ASCII. Copy the whole token again, including lk_."
        )
    return key.strip()


def accepted(answer: httpx.Response, *needed: str) -> dict[str, Any]:
    """The answer's members, among them those that are needed. Raises ImportSourceError for an
    answer that refuses the call, or that does not come from a Likeness server."""
    if not answer.is_success:
        raise ImportSourceError(f"{answer.request.url.host} refuses: {detail_of(answer)}")
    with suppress(ValueError):
        members = answer.json()
        if isinstance(members, dict) and members.keys() >= set(needed):
            return members
    raise ImportSourceError(f"{answer.request.url} does not answer as a Likeness server.")


def detail_of(answer: httpx.Response) -> str:
    """What an answer that is not a success says, as a sentence."""
    if detail := _problem(answer).get("detail"):
        return str(detail)
    return (
        f"{answer.request.method} {answer.request.url.path} was answered with "
        f"{answer.status_code}, but not by a Likeness server; check the URL, and any proxy in "
        "between."
    )


def _problem(answer: httpx.Response) -> dict[str, Any]:
    """The members of a problem document; none of another answer."""
    if "problem+json" not in answer.headers.get("content-type", ""):
        return {}
    with suppress(ValueError):
        members = answer.json()
        return members if isinstance(members, dict) else {}
    return {}
