"""Dashboard and alarms look at metrics that exist: a real run emits each, dimensions and all.

The one-machine AWS extracts no metrics from logs, so the embedded metric lines are read themselves.
AWS's own metrics (AWS/SQS, AWS/Lambda) do not exist here: of those, the resources are checked.
"""

import pytest

from tests.e2e.faulty.conftest import FaultyRun
from tests.metric_names import Metric, emitted, of_alarms, of_dashboard

pytestmark = pytest.mark.e2e

# The contract of the README; FallbackRate is metric math over the others.
CONTRACT = {
    "RowsSucceeded",
    "RowsFailed",
    "RowsDead",
    "FallbackUsed",
    "ProviderCalls",
    "ProviderErrors",
    "RateLimited",
    "ProviderLatency",
    "SlotWait",
    "BreakerOpened",
    "KeyRejected",
    "DuplicateSuppressed",
    "CostUSD",
}
# Source: "Available CloudWatch metrics for Amazon SQS" and "Types of metrics for Lambda functions".
OF_AWS = {
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible"),
    ("AWS/SQS", "ApproximateNumberOfMessagesNotVisible"),
    ("AWS/SQS", "ApproximateAgeOfOldestMessage"),
    ("AWS/SQS", "NumberOfMessagesDeleted"),
    ("AWS/Lambda", "ConcurrentExecutions"),
    ("AWS/Lambda", "Duration"),
    ("AWS/Lambda", "Errors"),
    ("AWS/Lambda", "Throttles"),
}


@pytest.fixture(scope="module")
def named(faulty_run: FaultyRun) -> set[Metric]:
    """Every metric that a widget or an alarm of the deployed stack names."""
    cloudwatch = faulty_run.info.client("cloudwatch")
    name = faulty_run.info.outputs["DashboardName"]
    body = cloudwatch.get_dashboard(DashboardName=name)["DashboardBody"]
    alarms = cloudwatch.describe_alarms()["MetricAlarms"]
    assert len(alarms) > 5
    return {*of_dashboard(body), *of_alarms(alarms)}


@pytest.fixture(scope="module")
def told(faulty_run: FaultyRun) -> set[Metric]:
    return set(emitted(faulty_run.logs))


def test_every_metric_of_ours_that_is_watched_is_emitted(
    named: set[Metric], told: set[Metric]
) -> None:
    ours = {metric for metric in named if metric.namespace == "Darkroom"}
    assert ours, "nothing of ours is watched"
    unknown = [m for m in ours if not any(m.matches(t) for t in told)]
    assert unknown == []


def test_every_metric_of_the_contract_is_emitted_and_watched(
    named: set[Metric], told: set[Metric]
) -> None:
    assert {m.name for m in told} >= CONTRACT
    assert {m.name for m in named if m.namespace == "Darkroom"} >= CONTRACT


def test_every_metric_of_ours_names_stack_and_at_most_an_endpoint(
    faulty_run: FaultyRun, told: set[Metric]
) -> None:
    """Each combination of dimensions costs money every month: job and row are none."""
    for metric in told:
        dimensions = dict(metric.dimensions)
        assert metric.namespace == "Darkroom"
        assert dimensions.pop("Stack") == faulty_run.info.stack
        assert dimensions.keys() <= {"Endpoint"}


def test_metrics_of_aws_name_resources_of_this_stack(
    faulty_run: FaultyRun, named: set[Metric]
) -> None:
    queues = faulty_run.info.client("sqs").list_queues()["QueueUrls"]
    functions = faulty_run.info.client("lambda").list_functions()["Functions"]
    known = {
        "QueueName": {url.rpartition("/")[2] for url in queues},
        "FunctionName": {function["FunctionName"] for function in functions},
    }
    theirs = {metric for metric in named if metric.namespace != "Darkroom"}
    assert {(metric.namespace, metric.name) for metric in theirs} <= OF_AWS
    for metric in theirs:
        ((dimension, value),) = metric.dimensions
        assert value in known[dimension]
