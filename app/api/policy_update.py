"""A change of a collection's policy: a JSON merge patch (RFC 7396)."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from app.decision.calibrations import policy_of
from app.decision.thresholds import CollectionPolicy
from app.store.records import CollectionRecord
from app.types import JsonObject


class _Update(BaseModel):
    """Members of a policy to be changed. Those that are left out stay as they are; null is the
    default. The members of a gate are changed one by one, too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def erases_crops(self) -> bool:
        """Whether it says that crops are not kept any more."""
        return not self.model_dump(exclude_unset=True).get("keep_crops", True)

    def merged(self, record: CollectionRecord) -> JsonObject:
        """The collection's policy, changed. Only what somebody has set: defaults may improve."""
        before, policy = policy_of(record).model_dump(mode="json"), dict(record.policy)
        for name, value in self.model_dump(mode="json", exclude_unset=True).items():
            if value is None:
                policy.pop(name, None)
            else:
                policy[name] = _merged(before[name], value)
        return policy


def _merged(before: Any, patch: Any) -> Any:
    """RFC 7396, for values whose members are no objects themselves."""
    if not isinstance(patch, Mapping) or not isinstance(before, Mapping):
        return patch
    return {name: one for name, one in {**before, **patch}.items() if one is not None}


_FIELDS: dict[str, Any] = {
    name: (field.rebuild_annotation() | None, None)
    for name, field in CollectionPolicy.model_fields.items()
}
PolicyUpdate = create_model(
    "CollectionPolicyUpdate", __base__=_Update, __doc__=_Update.__doc__, **_FIELDS
)
