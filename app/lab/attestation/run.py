"""One attestation from its source to its statement."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from app.decision.calibration import Calibration
from app.decision.calibrations import Calibrations, pack_calibration
from app.decision.domain import NO_LIMITS
from app.decision.face_selection import FaceSelection
from app.decision.policy import CollectionPolicy, policy_of
from app.decision.thresholds import (
    CalibrationChain,
    ThresholdDecision,
    ThresholdRequest,
    identification_threshold,
)
from app.gallery.gallery import Gallery
from app.index.comparator import COSINE
from app.index.port import PRECISION, GallerySize
from app.inference.pack_spec import ModelPack
from app.lab.attestation.cells import (
    STRATA,
    Attributes,
    Change,
    Searched,
    count_cells,
    without_group,
)
from app.lab.attestation.collection import MAX_PROBES, measure_collection
from app.lab.attestation.folder import (
    Measure,
    Roles,
    digest_of,
    roles_of,
    search_stratum,
    search_unchanged,
)
from app.lab.attestation.requirement import Requirement
from app.lab.attestation.statement import Measurement, Provenance, make_statement, model, software
from app.lab.attestation.statement import calibration as calibration_summary
from app.lab.evaluation.labels import LabelledPeople, LabelNoise
from app.lab.evaluation.protocol import (
    Analyser,
    EnrolledPhotos,
    Progress,
    enrol_photos,
    folder_name,
)
from app.types import JsonObject

_OF_FOLDER = (
    "People with two usable photos are enrolled with the first and searched for by the second; "
    "people with one are strangers. All photos go through the service's pipeline."
)
_OF_COLLECTION = (
    "Leave one out, on the collection's own templates, without photos: one template of each person "
    f"(of {MAX_PROBES:,} people at most, drawn by a fixed seed) is searched for among everybody "
    "else's, and where the person has another among all templates but itself. A pair of people who "
    "match is an error of both, so two searches count as one."
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the operator asks for. `gallery_persons` is whom the service is meant to hold; None for
    those it holds now. `attributes`: the group of each person, read from a file with that digest.
    """

    requirement: Requirement
    gallery_persons: int | None = None
    attributes: Attributes = field(default_factory=dict)
    attributes_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class _Used:
    """What decided, and the name of the data that it decided on."""

    pack: ModelPack
    rule: ThresholdDecision
    name: str


@dataclass(frozen=True, slots=True)
class FolderSource:
    """A folder of people, the setting to measure, and the strata of degraded photos."""

    people: LabelledPeople
    policy: CollectionPolicy
    noise: LabelNoise = field(default_factory=LabelNoise)
    selection: FaceSelection = FaceSelection.CENTRE
    strata: Mapping[str, Change] = field(default_factory=lambda: STRATA)


def attest_folder(
    source: FolderSource, wanted: Wanted, pack: ModelPack, analyser: Analyser, progress: Progress
) -> JsonObject:
    """Measure a pack's calibration on photos. Raises EvaluationError or AttestationError."""
    shipped = pack_calibration(pack.folder, pack.embedding_space, PRECISION)
    measure = _measure(source, analyser, shipped)
    people = source.people
    with progress("photos", len(people.images)) as tick:
        photos = enrol_photos(analyser, people.folder, people.images, source.selection, tick)
    roles = roles_of(people, photos, source.noise)
    searched = [search_unchanged(measure, roles, photos)]
    for stratum in source.strata.items():
        with progress(stratum[0], len(roles.photos)) as tick:
            searched += search_stratum(measure, roles, photos, stratum, tick)
    enrolled = len(roles.enrolled)
    chain = CalibrationChain([] if shipped is None else [shipped], pack.decision.threshold)
    # A degraded gallery is smaller and more alike than the other: it has a threshold of its own.
    rules = [_rule_for(one, source.policy, chain) for one in searched]
    cells = [
        cell
        for one, rule in zip(searched, rules, strict=True)
        for cell in count_cells(one, rule.threshold, wanted.attributes)
    ]
    rule = rules[0]
    ungrouped = without_group(searched[0], wanted.attributes)
    measured = Measurement(source.policy, rule, cells, ungrouped)
    persons = wanted.gallery_persons or wanted.requirement.gallery_persons or enrolled
    used, data = _Used(pack, rule, folder_name(people.folder)), _folder_data(source, roles, photos)
    return make_statement(
        _provenance(data, wanted, _OF_FOLDER, used), wanted.requirement, measured, persons
    )


def _rule_for(
    searched: Searched, policy: CollectionPolicy, chain: CalibrationChain
) -> ThresholdDecision:
    """What identification would decide by in the gallery that was searched."""
    size = GallerySize(searched.gallery_persons, searched.gallery_persons)
    return identification_threshold(
        ThresholdRequest(), policy, chain, size, likeness=searched.likeness
    )


def _measure(source: FolderSource, analyser: Analyser, shipped: Calibration | None) -> Measure:
    comparator = COSINE if shipped is None else shipped.comparator
    domain = None if shipped is None else shipped.domain
    limits = NO_LIMITS if domain is None else domain.limits
    return Measure(analyser, source.people, source.selection, comparator, source.policy, limits)


def _folder_data(source: FolderSource, roles: Roles, photos: EnrolledPhotos) -> dict[str, object]:
    return {
        "kind": "folder",
        "sha256": digest_of(source.people, photos),
        "photos": len(source.people.images),
        "people": len(set(source.people.persons)),
        "failures_to_enrol": len(photos.failures),
        "enrolled": len(roles.enrolled),
        "strangers": len(roles.strangers),
        "left_out": len(source.noise.images) + len(source.noise.same_people),
        "face_selection": source.selection.value,
    }


def attest_collection(
    name: str, wanted: Wanted, pack: ModelPack, gallery: Gallery, calibrations: Calibrations
) -> JsonObject:
    """Measure a collection at its own setting, by the score of several templates that decides
    there. Raises AttestationError, CollectionNotFound or EmbeddingSpaceMismatch."""
    record = gallery.require(name)
    policy, chain = policy_of(record), calibrations.chain(record)
    comparator = COSINE if calibrations.shared is None else calibrations.shared.comparator
    found = measure_collection(
        gallery, record, comparator, chain.score, named=bool(wanted.attributes)
    )
    size, likeness = gallery.size(name), gallery.likeness(name)
    rule = identification_threshold(ThresholdRequest(), policy, chain, size, likeness=likeness)
    cells = list(count_cells(found.searched, rule.threshold, wanted.attributes))
    data = {
        "kind": "collection",
        "name": name,
        "sha256": found.sha256,
        "people": found.persons,
        "templates": found.templates,
        "revision": record.revision,
    }
    ungrouped = without_group(found.searched, wanted.attributes)
    measured = Measurement(policy, rule, cells, ungrouped, left_out=1)
    persons = wanted.gallery_persons or wanted.requirement.gallery_persons or found.persons
    return make_statement(
        _provenance(data, wanted, _OF_COLLECTION, _Used(pack, rule, name)),
        wanted.requirement,
        measured,
        persons,
    )


def _provenance(data: dict[str, object], wanted: Wanted, method: str, used: _Used) -> Provenance:
    return Provenance(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        data={**data, "groups_sha256": wanted.attributes_sha256},
        method=method,
        software=software(),
        model=model(used.pack, PRECISION),
        calibration=calibration_summary(used.rule.calibration, used.name),
    )
