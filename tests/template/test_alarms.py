"""Alarms and dashboard of the template; the end-to-end tests check the metrics they use.

MiniStack has no metric math, so the expressions are evaluated here.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from darkroom.metrics import NAMESPACE, Metric
from tests.template.functions import FUNCTIONS
from tests.template.metric_math import evaluated, metrics_in

WATCHED = {
    "FallbackRateAlarm",
    "DeadLettersAlarm",
    "LostEventsAlarm",
    "OldestRowAlarm",
    "RowsWaitingAlarm",
    "OldestBatchAlarm",
    "SecretUnusableAlarm",
    "DailySpendAlarm",
    "StalledAlarm",
    "BreakerOpenedAlarm",
    "KeyRejectedAlarm",
    "ThrottlesAlarm",
    "FunctionErrorsAlarm",
    "NearTimeoutAlarm",
}
# AWS's guides: "Available CloudWatch metrics for Amazon SQS", "Types of metrics for Lambda".
AWS_METRICS = {
    "AWS/SQS": {
        "ApproximateNumberOfMessagesVisible": "QueueName",
        "NumberOfMessagesDeleted": "QueueName",
    },
    "AWS/Lambda": {
        "Errors": "FunctionName",
        "Throttles": "FunctionName",
        "Duration": "FunctionName",
    },
}
# PutMetricAlarm: EvaluationPeriods times Period, for a period below an hour and from an hour on.
DAY_SECONDS = 86_400
WEEK_SECONDS = 7 * DAY_SECONDS


@pytest.fixture(scope="module")
def alarms(resources: dict[str, Any]) -> dict[str, Any]:
    found = {n: r for n, r in resources.items() if r["Type"] == "AWS::CloudWatch::Alarm"}
    return {name: resource["Properties"] for name, resource in found.items()}


def statistics(alarm: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each metric of an alarm with its statistic and period."""
    if "Metrics" not in alarm:
        names = ("Namespace", "MetricName", "Dimensions", "Period")
        return [{name: alarm[name] for name in names} | {"Stat": alarm["Statistic"]}]
    queries = [query["MetricStat"] for query in alarm["Metrics"] if "MetricStat" in query]
    return [query["Metric"] | {n: query[n] for n in ("Stat", "Period")} for query in queries]


def expression(alarm: Mapping[str, Any]) -> str:
    (found,) = [query["Expression"] for query in alarm["Metrics"] if "Expression" in query]
    return str(found)


def ids(alarm: Mapping[str, Any]) -> set[str]:
    return {query["Id"] for query in alarm["Metrics"] if "MetricStat" in query}


def test_every_alarm_reaches_the_topic_and_is_quiet_without_data(alarms: dict[str, Any]) -> None:
    assert alarms.keys() == WATCHED
    for name, alarm in alarms.items():
        assert alarm["AlarmActions"] == [{"Ref": "AlarmsTopic"}], name
        assert alarm["TreatMissingData"] == "notBreaching", name
        assert len(alarm["AlarmDescription"]) > 20, name


def test_every_alarm_uses_a_metric_that_exists_with_its_dimensions(alarms: dict[str, Any]) -> None:
    for name, alarm in alarms.items():
        for metric in statistics(alarm):
            (dimension,) = metric["Dimensions"]
            if metric["Namespace"] == NAMESPACE:
                assert metric["MetricName"] in set(Metric), name
                assert dimension == {"Name": "Stack", "Value": {"Ref": "AWS::StackName"}}
            else:
                known = AWS_METRICS[metric["Namespace"]]
                assert dimension["Name"] == known[metric["MetricName"]], name


def test_the_periods_of_every_alarm_are_accepted_by_cloudwatch(alarms: dict[str, Any]) -> None:
    for name, alarm in alarms.items():
        (period,) = {metric["Period"] for metric in statistics(alarm)}
        assert period % 60 == 0, name
        looks_back = period * alarm["EvaluationPeriods"]
        assert looks_back <= (DAY_SECONDS if period < 3600 else WEEK_SECONDS), name
        assert alarm.get("DatapointsToAlarm", 1) <= alarm["EvaluationPeriods"], name


def test_every_expression_uses_exactly_its_metrics_and_is_what_alarms(
    alarms: dict[str, Any],
) -> None:
    math = {name: alarm for name, alarm in alarms.items() if "Metrics" in alarm}
    assert math
    for name, alarm in math.items():
        used = metrics_in(expression(alarm))
        assert used == ids(alarm), name
        assert all(re.fullmatch("[a-z][A-Za-z0-9_]*", id_) for id_ in used), name
        returned = [query for query in alarm["Metrics"] if query.get("ReturnData", True)]
        assert ["Expression" in query for query in returned] == [True], name


@pytest.mark.parametrize(
    ("alarm", "values", "breaches"),
    [
        ("FallbackRateAlarm", {}, False),
        ("FallbackRateAlarm", {"succeeded": 4, "fallback": 4}, False),  # few rows say little
        ("FallbackRateAlarm", {"succeeded": 10}, False),
        ("FallbackRateAlarm", {"succeeded": 10, "fallback": 3}, False),
        ("FallbackRateAlarm", {"succeeded": 10, "fallback": 4}, True),
        ("StalledAlarm", {}, False),
        ("StalledAlarm", {"waiting": 3}, True),
        ("StalledAlarm", {"waiting": 3, "finished": 1}, False),
        ("StalledAlarm", {"waiting": 0, "finished": 0}, False),
        ("ThrottlesAlarm", {}, False),
        ("ThrottlesAlarm", {"editor": 1}, True),
        ("FunctionErrorsAlarm", {}, False),
        ("FunctionErrorsAlarm", {"splitter": 0, "editor": 0, "reporter": 0}, False),
        ("FunctionErrorsAlarm", {"splitter": 1}, True),
        ("FunctionErrorsAlarm", {"editor": 0, "reporter": 2}, True),
        ("NearTimeoutAlarm", {}, False),
        ("NearTimeoutAlarm", {"splitter": 880_000, "editor": 1}, False),
        ("NearTimeoutAlarm", {"editor": 1, "reporter": 880_001}, True),
    ],
)
def test_an_expression_breaches_when_it_should(
    template: dict[str, Any],
    alarms: dict[str, Any],
    alarm: str,
    values: dict[str, float],
    breaches: bool,
) -> None:
    definition = alarms[alarm]
    result = evaluated(expression(definition), dict.fromkeys(ids(definition)) | values)
    assert result is not None, "no metric of it has data yet"
    threshold = definition["Threshold"]
    if isinstance(threshold, dict):
        threshold = template["Parameters"][threshold["Ref"]]["Default"]
    inclusive = definition["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"
    assert (result >= threshold if inclusive else result > threshold) is breaches


@pytest.mark.parametrize("name", ["ThrottlesAlarm", "FunctionErrorsAlarm", "NearTimeoutAlarm"])
def test_an_alarm_on_the_functions_covers_all_of_them(
    resources: dict[str, Any], alarms: dict[str, Any], name: str
) -> None:
    functions = {n for n, r in resources.items() if r["Type"] == "AWS::Lambda::Function"}
    covered = {m["Dimensions"][0]["Value"]["Ref"] for m in statistics(alarms[name])}
    assert covered == functions


def test_the_oldest_row_is_seen_whatever_its_receives(alarms: dict[str, Any]) -> None:
    """SQS's own ApproximateAgeOfOldestMessage leaves out messages received three times or more.

    https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-available-cloudwatch-metrics.html
    """
    alarm = alarms["OldestRowAlarm"]
    assert (alarm["Namespace"], alarm["MetricName"]) == ("Darkroom", "RowAge")
    assert Metric.ROW_AGE.unit == "Seconds"
    assert alarm["Threshold"] == 10 * DAY_SECONDS


def test_a_single_opening_of_a_breaker_is_no_alarm(alarms: dict[str, Any]) -> None:
    alarm = alarms["BreakerOpenedAlarm"]
    assert (alarm["DatapointsToAlarm"], alarm["EvaluationPeriods"]) == (2, 3)


def test_the_spend_of_a_day_is_watched_when_a_limit_is_given(
    template: dict[str, Any], resources: dict[str, Any], alarms: dict[str, Any]
) -> None:
    alarm = alarms["DailySpendAlarm"]
    assert resources["DailySpendAlarm"]["Condition"] == "WatchesSpend"
    assert template["Conditions"]["WatchesSpend"] == {
        "Fn::Not": [{"Fn::Equals": [{"Ref": "DailySpendAlarmUsd"}, 0]}]
    }
    assert (alarm["MetricName"], alarm["Statistic"], alarm["Period"]) == ("CostUSD", "Sum", 86_400)
    assert alarm["Threshold"] == {"Ref": "DailySpendAlarmUsd"}


def test_the_timeout_alarm_comes_before_the_timeout(
    resources: dict[str, Any], alarms: dict[str, Any]
) -> None:
    for function in FUNCTIONS:
        milliseconds = resources[function]["Properties"]["Timeout"] * 1000
        assert 0.9 < alarms["NearTimeoutAlarm"]["Threshold"] / milliseconds < 1


def test_the_dashboard_is_json_and_shows_every_alarm(
    resources: dict[str, Any], alarms: dict[str, Any]
) -> None:
    text = resources["Dashboard"]["Properties"]["DashboardBody"]["Fn::Sub"]
    body = json.loads(re.sub(r"\$\{!?([^}]+)\}", "0", text))
    boxes: Sequence[tuple[int, ...]] = [
        (w["x"], w["y"], w["width"], w["height"]) for w in body["widgets"]
    ]
    assert len(boxes) == len(set(boxes))
    assert all(x + width <= 24 for x, _, width, _ in boxes)
    shown = set(re.findall(r"alarm:\$\{AWS::StackName\}-([a-z-]+)", text))
    always = {name for name in alarms if "Condition" not in resources[name]}
    names = {alarms[name]["AlarmName"]["Fn::Sub"] for name in always}
    assert {"${AWS::StackName}-" + name for name in shown} == names
