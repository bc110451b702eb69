"""What reports of imports have about one person."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from app.importing.erasing import NAMES, name_in
from app.importing.job_folder import JobFolder
from app.store.identifiers import composed

MOST_ROWS = 1_000
# What is shown of other persons' rows, which name this person as similar to the face: nothing that
# identifies the others.
OF_OTHERS = ("result", "reason", "similarity")


def rows_about(folder: JobFolder, collection: str, person_id: str) -> list[dict[str, Any]]:
    """The rows of a person in the reports of imports into a collection, and rows of others that
    name the person, in the order of the reports; MOST_ROWS at most. Raises OSError."""
    return list(islice(_rows(folder, collection, composed(person_id)), MOST_ROWS))


def _rows(folder: JobFolder, collection: str, person_id: str) -> Iterator[dict[str, Any]]:
    jobs = [job for job in folder.all() if job.collection == collection]
    for job in sorted(jobs, key=lambda job: job.created_at):
        if job.detail is not None and person_id in job.detail:
            yield {"import_id": job.import_id, "detail": job.detail}
        try:
            file = folder.report(job).open("rb")
        except FileNotFoundError:  # not begun, or forgotten meanwhile
            continue
        with file:
            for line in file:
                if any(name_in(found) == person_id for found in NAMES.findall(line)):
                    yield {"import_id": job.import_id, **_shown(line, person_id)}


def _shown(line: bytes, person_id: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:  # cut off by a crash
        return {}
    if composed(str(row["person_id"])) == person_id:
        return {name: value for name, value in row.items() if name != "conflict_with"}
    return {name: row.get(name) for name in OF_OTHERS}
