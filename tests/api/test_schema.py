"""Every route against its OpenAPI document: schemathesis makes requests, good and bad, from the
document and holds the answers against it."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from app.services import build_services
from app.settings import Settings
from tests.api.conftest import run_server

pytestmark = pytest.mark.slow
# Of each operation: more find nothing new here, and take as long again.
EXAMPLES = 25
# Checks of schemathesis that do not hold here, and why.
EXCLUDED = {
    # No schema says which bytes are a photo, or which text is the cursor of an earlier answer.
    positive_data_acceptance,
}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with run_server(build_services(Settings(data_dir=tmp_path_factory.mktemp("service")))) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_every_call_keeps_to_its_document(document: Any) -> None:
    found: dict[str, str] = {}
    for result in document.get_all_operations():
        operation = result.ok()
        try:
            _attack(operation)
        except (AssertionError, BaseExceptionGroup) as error:
            found[operation.label] = str(error)
            print(operation.label, error)  # noqa: T201 - pytest cuts long values
    assert found == {}


def _attack(operation: Any) -> None:
    @settings(
        max_examples=EXAMPLES,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
        database=None,
    )
    @given(case=operation.as_strategy())
    def attack(case: Any) -> None:
        case.call_and_validate(timeout=60, excluded_checks=list(EXCLUDED))

    attack()
