"""Members of a policy whose values hold for one model pack only: they stop a cut-over."""

import json
from typing import Any

from app.errors import Conflict
from app.store.records import CollectionRecord

GATES = ("identify_gate", "verify_gate", "enroll_gate")


def require_no_pack_specific_values(collection: CollectionRecord, *, same_quality: bool) -> None:
    """Raise Conflict if the collection's policy has values that would decide otherwise in another
    embedding space: a threshold, a `min_embedding_norm`, and a `min_quality_score` unless the new
    pack has the same quality network."""
    limits = ["min_embedding_norm"] + ([] if same_quality else ["min_quality_score"])
    found, patch = list[str](), dict[str, Any]()
    threshold = collection.policy.get("threshold")
    if threshold is not None:
        found.append(f"the threshold {threshold}")
        patch["threshold"] = None
    for name in GATES:
        gate = collection.policy.get(name) or {}
        set_limits = [limit for limit in limits if gate.get(limit) is not None]
        if set_limits:
            found += [f"{name}.{limit} {gate[limit]:g}" for limit in set_limits]
            patch[name] = {
                limit: value
                for limit, value in gate.items()
                if value is not None and limit not in set_limits
            }
    if found:
        raise Conflict(
            f"The policy of '{collection.name}' has {', '.join(found)}. Such values hold only for "
            f"the model pack of the embedding space {collection.embedding_space}. Nothing was "
            f"changed. Remove them first: PATCH /v1/collections/{collection.name} with "
            f"{json.dumps({'policy': patch})}; after the cut-over the policy's target decides, and "
            "values that you set for the new pack."
        )
