"""Which calibrations a collection's decisions are based on: that of the pack, in a file beside its
networks, or one that the collection makes of its own people."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from app.decision.calibration import MAX_TEMPLATES, Calibration
from app.decision.comparisons import LabelledEmbeddings
from app.decision.domain import NO_LIMITS, Domain, SharedDirection, collection_likeness
from app.decision.fitting import Labelled, calibrate, require_persons
from app.decision.gallery_issues import suspected_duplicates
from app.decision.pair_lifts import NO_LIFTS
from app.decision.pairs import all_declared
from app.decision.policy import CollectionPolicy, policy_of
from app.decision.thresholds import (
    ONE_COMPARISON,
    CalibrationChain,
    ThresholdRequest,
    identification_threshold,
)
from app.errors import CalibrationMismatch, NotCalibrated, PackError
from app.faces.orientation import OrientationLimits
from app.findings import findings
from app.gallery.gallery import Gallery
from app.index.comparator import COSINE
from app.index.person_scores import PersonScore
from app.inference.pack_spec import ModelPack
from app.locks import new_lock
from app.store.records import CollectionRecord
from app.store.sql.collections import CalibrationStore
from app.telemetry.logs import log

CALIBRATION_FILE = "calibration.json"
MAX_BYTES = 16 << 20  # those of packs have 30 KB


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file. Raises PackError."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise _broken(path, f"it has more than {MAX_BYTES:,} bytes")
        return Calibration.model_validate_json(content)
    except ValidationError as error:
        place, message = findings(error.errors())[0]
        raise _broken(path, f"{place or 'content'}: {message}") from error
    except OSError as error:
        raise _broken(path, str(error)) from error


def _broken(path: Path, reason: str) -> PackError:
    return PackError(
        f"{path} is not a calibration: {reason}. Restore it, or make it again with likeness "
        "evaluate --calibration."
    )


def pack_calibration(
    folder: Path, embedding_space: str, precision: str, dimension: int | None = None
) -> Calibration | None:
    """The calibration beside a pack's networks; None where there is none.

    Raises PackError for a broken file, one of another recogniser, or one whose direction has not
    the `dimension` of the pack's embeddings.
    """
    path = folder / CALIBRATION_FILE
    if not path.exists():
        return None
    try:
        found = read_calibration(path).require(embedding_space, precision)
    except CalibrationMismatch as error:
        raise PackError(f"{path}: {error.detail}") from error
    numbers = None if found.domain is None else len(found.domain.shared.direction)
    if dimension is not None and numbers not in (None, dimension):
        raise PackError(
            f"{path}: the direction of its domain has {numbers} numbers, the pack's embeddings "
            f"have {dimension}. Restore it, or make it again with likeness evaluate "
            "--calibration."
        )
    return found


def pack_orientation(pack: ModelPack, precision: str) -> OrientationLimits | None:
    """When a pack's pipeline also analyses a photo turned; None: never. Raises PackError for a
    broken calibration.
    """
    found = pack_calibration(pack.folder, pack.embedding_space, precision)
    if found is None or found.orientation is None:
        return None
    return found.orientation.limits_for(pack)


MAX_HELD = 256


class Calibrations:
    """The pack's calibration and those of collections. Thread-safe."""

    def __init__(
        self,
        store: CalibrationStore,
        pack: Calibration | None,
        constant: float,
        *,
        embedding_space: str,
        precision: str,
    ) -> None:
        """`constant`: the pack's threshold where nothing is calibrated; space and precision are
        those of the similarities that decide here."""
        self.pack = pack
        self._store = store
        self._constant = constant
        self._embedding_space = embedding_space
        self._precision = precision
        self._held: dict[str, Calibration | None] = {}
        self._lock = new_lock("calibrations.held")

    @property
    def domain(self) -> Domain | None:
        """The pack's domain."""
        return None if self.pack is None else self.pack.domain

    @property
    def shared(self) -> SharedDirection | None:
        """The direction by which similarities are compared here, which is the pack's."""
        return None if self.domain is None else self.domain.shared

    def chain(self, record: CollectionRecord, score: PersonScore | None = None) -> CalibrationChain:
        """The collection's own calibration first, then the pack's, for its policy's score or for
        another one."""
        policy = policy_of(record)
        if score is not None:
            policy = policy.model_copy(update={"score": score})
        found = [one for one in (self.own(record), self.pack) if one is not None]
        return CalibrationChain.of(found, self._constant, policy)

    def check(self, policy: CollectionPolicy, record: CollectionRecord | None) -> None:
        """Raise NotCalibrated unless the score that a policy names can be used in a collection, or
        in a new one (None), and RateOutOfReach for a target that is put to use and that no
        calibration supports even for a single comparison."""
        own = None if record is None else self.own(record)
        found = [one for one in (own, self.pack) if one is not None]
        chain = CalibrationChain.of(found, self._constant, policy)
        if chain.score is not policy.score and "score" in policy.model_fields_set:
            raise NotCalibrated(
                f"score={policy.score.value} needs a calibration that was made for it, and neither "
                "the collection nor the model pack has one. Calibrate the collection (POST "
                "…/calibrate, at least 100 people), set a fixed threshold, or use score=best."
            )
        if policy.threshold is not None or not chain.calibrations:
            return  # no target decides
        before = None if record is None else policy_of(record)
        for name in {"target_fmr", "target_fpir"} & policy.model_fields_set:
            if before is None or any(
                getattr(before, one) != getattr(policy, one) for one in (name, "score", "threshold")
            ):
                request = ThresholdRequest(**{name: getattr(policy, name)})
                identification_threshold(request, policy, chain, ONE_COMPARISON)

    def own(self, record: CollectionRecord) -> Calibration | None:
        """The collection's own calibration, if it is in use and can be used with this pack.

        One of another space or precision is not used; the log says so, once.
        """
        name = record.calibration_id
        if name is None:
            return None
        key = f"{record.key}/{name}"
        with self._lock:
            if key in self._held:
                return self._held[key]
        found = self._load(record)
        with self._lock:
            if len(self._held) >= MAX_HELD:
                self._held.clear()
            self._held[key] = found
        return found

    def _load(self, record: CollectionRecord) -> Calibration | None:
        content = self._store.get(record)
        if content is None:
            return None
        try:
            calibration = Calibration.model_validate(content)
            calibration.require(self._embedding_space, self._precision)
            self._require_comparison(calibration)
            return calibration
        except CalibrationMismatch as error:  # expected, after a change of the model pack
            log(logging.WARNING, "a calibration is not used",
                calibration_id=record.calibration_id, reason=error.detail)  # fmt: skip
        except ValidationError as error:
            log(logging.WARNING, "a calibration is not used", error,
                calibration_id=record.calibration_id)  # fmt: skip
        return None

    def _require_comparison(self, calibration: Calibration) -> None:
        """Raise CalibrationMismatch where scores here may be higher than those it was counted on.
        A cosine is never lower than the score, so a calibration of cosines states higher error
        rates than the scores have, and is kept.
        """
        domain = calibration.domain
        if domain is None or (self.shared and self.shared.scores_at_most(domain.shared)):
            return
        raise CalibrationMismatch(
            f"The calibration {calibration.calibration_id} was counted on scores with another "
            "direction of degraded faces than the model pack's calibration has now. Calibrate "
            "the collection again."
        )


@dataclass(frozen=True, slots=True)
class DuplicateSuspect:
    """Two person ids that seem to be one person."""

    person_id_a: str
    person_id_b: str
    similarity: float


@dataclass(frozen=True, slots=True)
class CollectionCalibration:
    """A collection's own calibration. The suspects are only returned and not stored, so that
    nothing of a deleted person remains."""

    calibration: Calibration
    suspects: tuple[DuplicateSuspect, ...]


def calibrate_collection(
    gallery: Gallery,
    name: str,
    generator: "np.random.Generator",
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    *,
    domain: Domain | None = None,
) -> CollectionCalibration:
    """Calibrate a collection on a sample of its own people and put that calibration to use.

    Pairs of people that are probably one person are left out of the false match rates, and counted
    as errors in their upper confidence limits: so that the limits hold even if every suspected pair
    is two people. Suspects who are declared to be different are not listed. `domain` is the pack's,
    whose direction, limits and lifts hold here too. Raises NotEnoughData, CollectionNotFound or
    EmbeddingSpaceMismatch.
    """
    record = gallery.require(name)
    templates = gallery.store.embeddings.sample(record, MAX_TEMPLATES, generator)
    shared = None if domain is None else domain.shared
    comparator = COSINE if shared is None else shared.comparator
    data = LabelledEmbeddings.of(templates.vectors, templates.person_keys, comparator)
    require_persons(data)
    suspects = suspected_duplicates(data)
    left_out = frozenset((pair.person_a, pair.person_b) for pair in suspects)
    calibration = calibrate(
        Labelled(
            data,
            "collection",
            name,
            left_out,
            shared,
            NO_LIMITS if domain is None else domain.limits,
            NO_LIFTS if domain is None else domain.verification_of(collection_likeness(data)),
        ),
        record.embedding_space,
        gallery.precision,
        clock,
    )
    gallery.store.calibrations.set(record, calibration.calibration_id, calibration.content())
    # Of each numbered person the first template, whose record has the person's id.
    people, first = np.unique(templates.person_keys, return_index=True)
    declared = all_declared(gallery.store.pairs, name)
    faces = gallery.store.templates.by_key(templates.keys[first].tolist())
    ids = [faces[key].person_id if key in faces else None for key in templates.keys[first].tolist()]
    named = (
        (ids[pair.person_a], ids[pair.person_b], pair.similarity)
        for pair in suspects
        if people[pair.person_b] not in declared.get(int(people[pair.person_a]), ())
    )
    return CollectionCalibration(
        calibration,
        tuple(DuplicateSuspect(a, b, s) for a, b, s in named if a is not None and b is not None),
    )
