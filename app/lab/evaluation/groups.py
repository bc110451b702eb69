"""Every error rate by group of people, at one threshold for all groups, that of the whole sample,
as in a service.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from app.decision.comparisons import (
    ErrorCurve,
    Indices,
    PersonPair,
    compare_mated,
    rates_at,
)
from app.decision.rates import Rate
from app.lab.evaluation.figures import GroupFigures
from app.lab.evaluation.identification import by_person, search, split
from app.lab.evaluation.labels import LabelledPeople
from app.lab.evaluation.metrics import binomial
from app.lab.evaluation.protocol import EnrolledPhotos
from app.lab.evaluation.sample import FaceSample

MIN_GROUP = 2


def by_group(
    sample: FaceSample,
    people: LabelledPeople,
    photos: EnrolledPhotos,
    attributes: Mapping[str, Mapping[str, str]],
    thresholds: tuple[float, float],
) -> tuple[GroupFigures, ...]:
    """Figures for each group of each attribute, at the sample's thresholds for comparisons and
    for searches among everybody. People of no group are in no group's figures."""
    figures = []
    for attribute, group_of in attributes.items():
        for group in sorted(set(group_of.values())):
            members = np.array(
                [i for i, name in enumerate(sample.names) if group_of.get(name) == group], np.intp
            )
            figures.append(
                _figures(sample, members, thresholds, attribute, group)
                if len(members) >= MIN_GROUP
                else _too_few(attribute, group, len(members), thresholds[0])
            )
            failures = _failures(people, photos, group_of, group)
            figures[-1] = replace(figures[-1], failures_to_enrol=failures)
    return tuple(figures)


def _failures(
    people: LabelledPeople, photos: EnrolledPhotos, group_of: Mapping[str, str], group: str
) -> Rate | None:
    images = [
        image
        for image, person in zip(people.images, people.persons, strict=True)
        if group_of.get(person) == group
    ]
    if not images:
        return None
    failed = sum(image not in photos.faces for image in images)
    return binomial(failed / len(images), len(images))


def _too_few(attribute: str, group: str, people: int, threshold: float) -> GroupFigures:
    return GroupFigures(attribute, group, people, 0, None, threshold, None, None, None, None)


def _figures(
    sample: FaceSample,
    members: Indices,
    thresholds: tuple[float, float],
    attribute: str,
    group: str,
) -> GroupFigures:
    number = {int(person): i for i, person in enumerate(members)}
    left_out: frozenset[PersonPair] = frozenset(
        (number[a], number[b]) for a, b in sample.left_out if a in number and b in number
    )
    data = sample.data.of_persons(members)
    comparing, searching = thresholds
    mated = compare_mated(data, np.array([comparing]))
    fpir, fnir = _searches(sample, members, searching)
    return GroupFigures(
        attribute=attribute,
        group=group,
        people=len(members),
        photos=len(data.persons),
        failures_to_enrol=None,
        threshold=comparing,
        fmr=_first(rates_at(data, np.array([comparing]), left_out)),
        fnmr=None if mated is None else _first(mated[0]),
        fpir=fpir,
        fnir=fnir,
    )


def _searches(
    sample: FaceSample, members: Indices, threshold: float
) -> tuple[Rate | None, Rate | None]:
    """FPIR of the group's strangers and FNIR of its known people, among everybody."""
    enrolled, strangers = split(sample)
    if len(enrolled) < MIN_GROUP or len(strangers) == 0:
        return None, None
    found = search(sample, enrolled, strangers)
    mine = np.isin(found.persons, members)
    wrong = (found.strangers >= threshold)[np.isin(strangers, members)]
    missed = (~found.first | (found.own < threshold))[mine]
    return (
        by_person(wrong, np.arange(len(wrong))) if len(wrong) else None,
        by_person(missed, found.persons[mine]) if len(missed) else None,
    )


def _first(curve: ErrorCurve) -> Rate:
    return Rate(float(curve.rates[0]), float(curve.low[0]), float(curve.high[0]))
