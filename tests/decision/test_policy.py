"""What a policy may hold."""

import pytest

from app.decision.policy import CollectionPolicy


@pytest.mark.parametrize(
    "policy", [{"target_fpir": 0}, {"target_fmr": 0.9}, {"threshold": 2}, {"unknown": 1}]
)
def test_a_policy_that_means_nothing_is_refused(policy: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(policy))):
        CollectionPolicy.model_validate(policy)
