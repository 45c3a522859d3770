"""Log lines and embedded metrics as CloudWatch expects them."""

import json
import uuid
from functools import cached_property
from typing import Any

import pytest

from darkroom.aws.telemetry import PowertoolsTelemetry
from darkroom.metrics import Metric
from tests.fakes.services import FakeClock


class TelemetryHarness:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    @cached_property
    def telemetry(self) -> PowertoolsTelemetry:
        # A new service name each time: Powertools keeps one logger, with its stream, per service.
        # Created in the test itself: while fixtures are set up, capsys has a different stream.
        return PowertoolsTelemetry("shop", uuid.uuid4().hex)

    def lines(self) -> list[dict[str, Any]]:
        """Printed since the last call, after the pending metrics are flushed."""
        self.telemetry.flush()
        return [json.loads(line) for line in self._capsys.readouterr().out.splitlines()]


@pytest.fixture
def harness(capsys: pytest.CaptureFixture[str]) -> TelemetryHarness:
    return TelemetryHarness(capsys)


def emf(line: dict[str, Any]) -> dict[str, Any]:
    (only,) = line["_aws"]["CloudWatchMetrics"]
    assert isinstance(only, dict)
    return only


def test_stack_metrics_have_the_stack_as_their_only_dimension_and_are_printed_once(
    harness: TelemetryHarness,
) -> None:
    harness.telemetry.metric(Metric.ROWS_SUCCEEDED)
    (line,) = harness.lines()
    assert emf(line)["Namespace"] == "Darkroom"
    assert emf(line)["Dimensions"] == [["Stack"]]
    assert line["Stack"] == "shop"
    assert line["RowsSucceeded"] == [1.0]
    assert harness.lines() == []


def test_endpoint_metrics_count_for_the_stack_and_for_the_endpoint(
    harness: TelemetryHarness,
) -> None:
    harness.telemetry.metric(Metric.PROVIDER_CALLS, endpoint="gemini-main")
    harness.telemetry.metric(Metric.PROVIDER_LATENCY, 120.0, endpoint="gemini-main")
    harness.telemetry.metric(Metric.PROVIDER_CALLS, endpoint="openai-main")
    gemini, openai = harness.lines()
    assert emf(gemini)["Dimensions"] == [["Stack"], ["Stack", "Endpoint"]]
    assert (gemini["Endpoint"], gemini["ProviderLatency"]) == ("gemini-main", [120.0])
    assert (openai["Endpoint"], openai["ProviderCalls"]) == ("openai-main", [1.0])


def test_no_value_is_lost_when_one_metric_has_more_than_100(harness: TelemetryHarness) -> None:
    for value in range(250):
        harness.telemetry.metric(Metric.SLOT_WAIT, value)
    assert [v for line in harness.lines() for v in line["SlotWait"]] == list(range(250))


def test_bound_fields_are_on_every_line_inside_and_on_none_after(harness: TelemetryHarness) -> None:
    with harness.telemetry.bound(job="jobs/a", row=7):
        harness.telemetry.info("attempt", outcome="succeeded")
    harness.telemetry.info("after")
    inside, after = harness.lines()
    assert (inside["job"], inside["row"], inside["outcome"]) == ("jobs/a", 7, "succeeded")
    assert "job" not in after


def test_fields_named_like_logging_attributes_are_kept(harness: TelemetryHarness) -> None:
    harness.telemetry.warning("odd", name="image.png", args=3)
    (line,) = harness.lines()
    assert (line["name_"], line["args_"]) == ("image.png", 3)


def test_a_long_invocation_prints_its_metrics_every_minute(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = FakeClock()
    telemetry = PowertoolsTelemetry("shop", uuid.uuid4().hex, clock=clock.now)

    def count_after(seconds: float) -> None:
        clock.sleep(seconds)
        telemetry.metric(Metric.ROWS_SUCCEEDED)

    def printed() -> list[float]:
        lines = map(json.loads, capsys.readouterr().out.splitlines())
        return [value for line in lines for value in line["RowsSucceeded"]]

    for seconds in (0, 20, 39.9):
        count_after(seconds)
    assert printed() == []
    count_after(0.1)
    assert printed() == [1.0] * 4
    count_after(59)  # a minute counts from the first metric after the last ones were printed
    count_after(51)
    assert printed() == []
    telemetry.flush()
    assert printed() == [1.0, 1.0]
