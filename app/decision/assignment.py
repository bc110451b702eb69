"""One person once: the faces of a photo are different people."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from app.decision.policy import is_match
from app.gallery.candidates import Candidate


def assign_persons(rows: Sequence[Sequence[Candidate]], threshold: float) -> list[Candidate | None]:
    """For each face the candidate it is taken for, no person twice, or None.

    Optimal: of all ways to give each face at most one person at the threshold or above, the one
    with the largest sum of similarities over the threshold (the assignment problem; Kuhn 1955,
    solved after Jonker & Volgenant). Exact when each row of n faces holds its n nearest persons.
    """
    persons = sorted({candidate.face.person_id for row in rows for candidate in row})
    column = {person: i for i, person in enumerate(persons)}
    gain = np.zeros(
        (len(rows), len(persons) + len(rows))
    )  # one column for each face to stay unassigned
    chosen: dict[tuple[int, int], Candidate] = {}
    for i, row in enumerate(rows):
        for candidate in row:
            if is_match(candidate.similarity, threshold):
                j = column[candidate.face.person_id]
                # At the threshold itself an assignment is still worth more than none.
                gain[i, j] = candidate.similarity - threshold + 1e-9
                chosen[i, j] = candidate
    faces, columns = linear_sum_assignment(gain, maximize=True)
    return [chosen.get((int(i), int(j))) for i, j in zip(faces, columns, strict=True)]
