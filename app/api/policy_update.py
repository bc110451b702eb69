"""A change of a collection's policy, member by member, as a JSON merge patch (RFC 7396) does it."""

from typing import Any

from pydantic import BaseModel, ConfigDict, create_model

from app.decision.thresholds import CollectionPolicy
from app.types import JsonObject


class _Update(BaseModel):
    """Members of a policy to be changed. Those that are left out stay as they are; null gives a
    member its default. A gate that is given replaces the whole gate."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def merged(self, policy: JsonObject) -> JsonObject:
        """A stored policy, changed. Only members that were set are stored: the others follow the
        defaults of later versions."""
        changed = {**policy, **self.model_dump(mode="json", exclude_unset=True)}
        return {name: value for name, value in changed.items() if value is not None}


_FIELDS: dict[str, Any] = {
    name: (field.rebuild_annotation() | None, None)
    for name, field in CollectionPolicy.model_fields.items()
}
PolicyUpdate = create_model(
    "CollectionPolicyUpdate", __base__=_Update, __doc__=_Update.__doc__, **_FIELDS
)
