"""Alarms and dashboard of the template; the end-to-end tests check the metrics they use."""

import json
import re
from typing import Any

import pytest

WATCHED = {
    "FallbackRateAlarm",
    "DeadLettersAlarm",
    "OldestRowAlarm",
    "BreakerOpenedAlarm",
    "KeyRejectedAlarm",
    "ThrottlesAlarm",
    "SplitterErrorsAlarm",
    "NearTimeoutAlarm",
}


@pytest.fixture
def alarms(resources: dict[str, Any]) -> dict[str, Any]:
    found = {n: r for n, r in resources.items() if r["Type"] == "AWS::CloudWatch::Alarm"}
    return {name: resource["Properties"] for name, resource in found.items()}


def test_every_alarm_reaches_the_topic_and_is_quiet_without_data(alarms: dict[str, Any]) -> None:
    assert alarms.keys() >= WATCHED
    for name, alarm in alarms.items():
        assert alarm["AlarmActions"] == [{"Ref": "AlarmsTopic"}], name
        assert alarm["TreatMissingData"] == "notBreaching", name
        assert len(alarm["AlarmDescription"]) > 20, name


def test_the_fallback_alarm_is_a_rate_over_all_rows_that_succeeded(alarms: dict[str, Any]) -> None:
    alarm = alarms["FallbackRateAlarm"]
    metrics = {m["Id"]: m for m in alarm["Metrics"]}
    assert alarm["Threshold"] == {"Ref": "FallbackAlarmPercent"}
    assert metrics["fallback"]["MetricStat"]["Metric"]["MetricName"] == "FallbackUsed"
    assert metrics["succeeded"]["MetricStat"]["Metric"]["MetricName"] == "RowsSucceeded"
    assert "100 * FILL(fallback, 0) / succeeded" in metrics["rate"]["Expression"]
    assert [m["Id"] for m in alarm["Metrics"] if m.get("ReturnData", True)] == ["rate"]


def test_the_timeout_alarm_comes_before_the_timeout(
    resources: dict[str, Any], alarms: dict[str, Any]
) -> None:
    for function in ("SplitterFunction", "EditorFunction", "ReporterFunction"):
        milliseconds = resources[function]["Properties"]["Timeout"] * 1000
        assert 0.9 < alarms["NearTimeoutAlarm"]["Threshold"] / milliseconds < 1


def test_the_dashboard_is_json_and_shows_every_alarm(
    resources: dict[str, Any], alarms: dict[str, Any]
) -> None:
    text = resources["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    body = json.loads(re.sub(r"\$\{!?([^}]+)\}", "0", text))
    boxes = [(w["x"], w["y"], w["width"], w["height"]) for w in body["widgets"]]
    assert len(boxes) == len(set(boxes))
    assert all(x + width <= 24 for x, _, width, _ in boxes)
    shown = set(re.findall(r"alarm:\$\{AWS::StackName\}-([a-z-]+)", text))
    names = {alarm["AlarmName"]["Fn::Sub"] for alarm in alarms.values()}
    assert {"${AWS::StackName}-" + name for name in shown} == names
