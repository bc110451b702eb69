"""The metrics of several processes as those of one service."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.telemetry.metrics import Metrics
from app.telemetry.summed_metrics import SummedMetrics


def exposition(requests: int, pending: int, age: float) -> str:
    metrics = Metrics()
    metrics.observe("likeness_erasure_pending_seconds", "An age.", lambda: age)
    for _ in range(requests):
        metrics.observe_request("/v1/embed", "POST", 200, 0.02)
    metrics.pending.set(pending)
    return metrics.render().decode()


def values(text: str) -> dict[str, float]:
    """By name; of several label sets the last one."""
    families = text_string_to_metric_families(text)
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_counts_are_added_and_ages_are_not() -> None:
    found = values(SummedMetrics().of([exposition(3, 1, 7.0), exposition(4, 2, 5.0)]))
    assert found["likeness_requests_total"] == 7
    assert found["likeness_request_seconds_count"] == 7
    assert found["likeness_pending_requests"] == 3
    assert found["likeness_processes"] == 2
    assert found["likeness_erasure_pending_seconds"] == 7


def test_what_one_process_alone_has_is_there_too() -> None:
    other = Metrics()
    other.observe_problem("overloaded")
    found = values(SummedMetrics().of([exposition(1, 0, 0.0), other.render().decode()]))
    assert found["likeness_problems_total"] == 1
    assert found["likeness_requests_total"] == 1


def test_counts_of_a_process_that_has_ended_stay() -> None:
    metrics = SummedMetrics()
    metrics.end(exposition(3, 5, 9.0))
    metrics.end(exposition(10, 5, 9.0))
    metrics.end(None)
    found = values(metrics.of([exposition(4, 2, 1.0)]))
    assert found["likeness_requests_total"] == 17
    assert found["likeness_request_seconds_count"] == 17
    assert (found["likeness_pending_requests"], found["likeness_processes"]) == (2, 1)
    assert found["likeness_erasure_pending_seconds"] == 1


@pytest.mark.parametrize(
    "label", ["a b", 'quote " and \\', "line\nbreak", "\u2028 and \x85", "{le=1} 5", "# HELP x"]
)
def test_the_exposition_of_one_process_is_itself(label: str) -> None:
    metrics = Metrics()
    metrics.observe_request(label, "POST", 200, 0.02)
    metrics.observe("likeness_large", "A number.", lambda: 1.5e300)
    metrics.observe("likeness_infinite", "Not a number.", lambda: float("inf"))
    text = metrics.render().decode()
    assert SummedMetrics().of([text]) == text
    twice = values(SummedMetrics().of([text, text]))
    assert twice["likeness_requests_total"] == 2
