"""Log lines and embedded metrics as CloudWatch expects them."""

import json
import uuid

import pytest

from darkroom.aws.telemetry import PowertoolsTelemetry
from darkroom.metrics import Metric


def _lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def _telemetry() -> PowertoolsTelemetry:
    # A new service name each time: Powertools keeps one logger, with its stream, per service.
    # Created in the test itself: while fixtures are set up, capsys has a different stream.
    return PowertoolsTelemetry("shop", uuid.uuid4().hex)


def _emf(line: dict[str, object]) -> dict[str, object]:
    aws = line["_aws"]
    assert isinstance(aws, dict)
    metrics = aws["CloudWatchMetrics"]
    assert isinstance(metrics, list)
    (only,) = metrics
    assert isinstance(only, dict)
    return only


def test_stack_metrics_have_the_stack_as_their_only_dimension(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry = _telemetry()
    telemetry.metric(Metric.ROWS_SUCCEEDED)
    telemetry.flush()
    (line,) = _lines(capsys)
    assert _emf(line)["Namespace"] == "Darkroom"
    assert _emf(line)["Dimensions"] == [["Stack"]]
    assert line["Stack"] == "shop"
    assert line["RowsSucceeded"] == [1.0]


def test_endpoint_metrics_count_for_the_stack_and_for_the_endpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry = _telemetry()
    telemetry.metric(Metric.PROVIDER_CALLS, endpoint="gemini-main")
    telemetry.metric(Metric.PROVIDER_LATENCY, 120.0, endpoint="gemini-main")
    telemetry.metric(Metric.PROVIDER_CALLS, endpoint="openai-main")
    telemetry.flush()
    gemini, openai = _lines(capsys)
    assert _emf(gemini)["Dimensions"] == [["Stack"], ["Stack", "Endpoint"]]
    assert (gemini["Endpoint"], gemini["ProviderLatency"]) == ("gemini-main", [120.0])
    assert (openai["Endpoint"], openai["ProviderCalls"]) == ("openai-main", [1.0])


def test_no_value_is_lost_when_one_metric_has_more_than_100(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry = _telemetry()
    for value in range(250):
        telemetry.metric(Metric.SLOT_WAIT, value)
    telemetry.flush()
    values = [v for line in _lines(capsys) for v in line["SlotWait"]]  # type: ignore[attr-defined]
    assert values == [float(v) for v in range(250)]


def test_flush_prints_each_metric_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry = _telemetry()
    telemetry.metric(Metric.ROWS_FAILED)
    telemetry.flush()
    capsys.readouterr()
    telemetry.flush()
    assert _lines(capsys) == []


def test_bound_fields_are_on_every_line_inside_and_on_none_after(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry = _telemetry()
    with telemetry.bound(job="jobs/a", row=7):
        telemetry.info("attempt", outcome="succeeded")
    telemetry.info("after")
    inside, after = _lines(capsys)
    assert (inside["job"], inside["row"], inside["outcome"]) == ("jobs/a", 7, "succeeded")
    assert "job" not in after


def test_fields_named_like_logging_attributes_are_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    telemetry = _telemetry()
    telemetry.warning("odd", name="image.png", args=3)
    (line,) = _lines(capsys)
    assert (line["name_"], line["args_"]) == ("image.png", 3)
