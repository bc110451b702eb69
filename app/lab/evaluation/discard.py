"""Error versus discard: would fewer mates be missed if the worst photos had been refused?

Grother & Tabassi, "Performance of biometric quality measures", IEEE PAMI 2007. A measure that
knows nothing leaves FNMR where it was however much is discarded.
"""

import numpy as np

from app.decision.rates import Floats
from app.lab.evaluation.figures import DiscardFigures
from app.lab.evaluation.metrics import RULE_OF_THIRTY
from app.lab.evaluation.sample import FaceSample, quality_column

DISCARDED = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
# What is good, as a number that rises with it.
MEASURES = ("face_size_px", "yaw", "pitch", "roll", "sharpness", "brightness", "detector_score",
            "embedding_norm")  # fmt: skip
SIGNED = {"yaw", "pitch", "roll"}


def error_versus_discard(sample: FaceSample, threshold: float) -> tuple[DiscardFigures, ...]:
    """FNMR at a fixed threshold without the comparisons whose worse photo is worst.

    Empty where fewer than 30 comparisons are missed: that is too few to find their causes.
    """
    data, rows = sample.data, []
    for person in np.flatnonzero(data.counts > 1):
        faces = np.flatnonzero(data.persons == person)
        i, j = np.triu_indices(len(faces), 1)
        values = data.mated(faces)
        rows.append((values < threshold, faces[i], faces[j], np.full(len(values), 1 / len(values))))
    if not rows:
        return ()
    missed, a, b, weights = (np.concatenate(column) for column in zip(*rows, strict=True))
    if np.count_nonzero(missed) < RULE_OF_THIRTY:
        return ()
    figures = []
    for measure in MEASURES:
        good = goodness(sample, measure)
        fnmr = _curve(missed, weights, np.minimum(good[a], good[b]))
        base = fnmr[0]
        gain = float(np.mean(1 - np.array(fnmr[1:]) / base)) if base else 0.0
        figures.append(DiscardFigures(measure, threshold, DISCARDED, fnmr, gain))
    return tuple(figures)


def goodness(sample: FaceSample, measure: str) -> Floats:
    """A quality measure turned so that more is better: angles by how frontal, brightness by how
    near the sample's middle."""
    values = quality_column(sample.qualities, measure).astype(np.float64)
    if measure in SIGNED:
        return -np.abs(values)
    if measure == "brightness":
        return -np.abs(values - np.median(values))
    return values


def _curve(missed: Floats, weights: Floats, good: Floats) -> tuple[float, ...]:
    order = np.argsort(-good, kind="stable")
    total = np.cumsum(weights[order])
    errors = np.cumsum((missed * weights)[order])
    kept = [int(np.searchsorted(total, (1 - share) * total[-1] - 1e-9)) for share in DISCARDED]
    return tuple(float(errors[k] / total[k]) for k in kept)
