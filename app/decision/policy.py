"""The policy of a collection: its settings, used where a call gives none."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from app.decision.gates import (
    MILD_GATE,
    OPEN_GATE,
    Measurable,
    QualityGate,
    require_passable,
)
from app.index.person_scores import PersonScore
from app.store.records import CollectionRecord

# Where a policy names none (docs/adr/0025-person-scores.md).
DEFAULT_SCORE = PersonScore.BEST
MOST_RETENTION_DAYS = 36_500

ErrorRate = Annotated[float, Field(gt=0, le=0.5, allow_inf_nan=False)]


def _without_fraction(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Of an int in a strict model, after its Field: JSON does not tell 30.0 from 30.
WHOLE_NUMBER = BeforeValidator(_without_fraction)


class ShownCandidates(StrEnum):
    """Which persons an identification names: the nearest ones, matches or not; or only the one
    that it finds."""

    ALL = "all"
    IDENTIFIED = "identified"


class CollectionPolicy(BaseModel):
    """The settings of a collection, used where a call gives none.

    `target_fmr` one in 10,000 is what FIDO's Biometric Component Certification asks of a
    verification; `target_fpir` one in 100 is an operating point of NIST FRTE 1:N.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    target_fpir: Annotated[
        ErrorRate,
        Field(
            description=(
                "Identify: target FPIR, the share of searches for strangers (people who are not "
                "enrolled) that may find somebody."
            )
        ),
    ] = 0.01
    target_fmr: Annotated[
        ErrorRate,
        Field(
            description="Verify: target FMR, the share of comparisons of different "
            "people that may match."
        ),
    ] = 1e-4
    threshold: Annotated[
        float | None,
        Field(
            ge=-1,
            le=1,
            description="A fixed threshold instead of a target; it does not depend on the gallery.",
        ),
    ] = None
    score: Annotated[
        PersonScore,
        Field(
            strict=False,
            description="The similarity of a person with several faces: that of the `best`, that "
            "of their `centroid`, or the mean of both (`fused`). The last two need a calibration "
            "that was made for them, or a fixed threshold.",
        ),
    ] = DEFAULT_SCORE
    candidates: Annotated[
        ShownCandidates,
        Field(
            strict=False,
            description="Identify: `all` answers with the nearest persons, matches or not; "
            "`identified` names nobody but the person that is identified, or in `between` those of "
            "an ambiguous answer, and refuses calls whose threshold is below the policy's, as well "
            "as such verifications of a person.",
        ),
    ] = ShownCandidates.ALL
    identify_gate: Annotated[
        QualityGate, Field(description="Probes that fail it are rejected. No limits by default.")
    ] = OPEN_GATE
    keep_crops: Annotated[
        bool,
        Field(
            description=(
                "Keep the aligned face of each photo enrolled from now on, encrypted like "
                "embeddings, so that another model pack can embed it. Setting it to false "
                "deletes the kept ones."
            )
        ),
    ] = False
    audit_searches: Annotated[
        bool,
        Field(
            description="Write each identification and verification to the audit log: the answer, "
            "never photos or embeddings. Each such call then writes to the database."
        ),
    ] = False
    retention_days: Annotated[
        int | None,
        Field(
            ge=1,
            le=MOST_RETENTION_DAYS,
            description="Delete persons this many days after their creation, last enrollment or "
            "last match, whichever is latest. Null: never.",
        ),
        WHOLE_NUMBER,
    ] = None
    consent_required: Annotated[
        bool,
        Field(
            description="Persons need a consent: metadata with `consent`, an object with a "
            "`reference` and, if it ends, `expires`, a day or a time. Without one nobody is "
            "enrolled. Persons whose consent has ended are not matched, and are deleted."
        ),
    ] = False
    verify_gate: Annotated[
        QualityGate, Field(description="A probe that fails it is refused. No limits by default.")
    ] = OPEN_GATE
    enroll_gate: Annotated[
        QualityGate, Field(description="Photos that fail it are not enrolled. Mild by default.")
    ] = MILD_GATE


def policy_of(record: CollectionRecord) -> CollectionPolicy:
    """How the collection decides, as its operator set it."""
    return CollectionPolicy.model_validate(record.policy)


def check_gates(
    policy: CollectionPolicy, before: CollectionPolicy | None, measurable: Measurable
) -> None:
    """Raise InvalidRequest or LivenessUnavailable for a gate of a new policy that no face can pass.
    One that was set `before` keeps no other member from being changed."""
    for name in ("identify_gate", "verify_gate", "enroll_gate"):
        gate = getattr(policy, name)
        if name in policy.model_fields_set and (before is None or getattr(before, name) != gate):
            require_passable(gate, f"policy.{name}", measurable)
