"""The parser of metric names that the end-to-end test relies on."""

import json

import pytest

from tests.metric_names import NamedMetric, emitted, of_alarms, of_dashboard

STACK = frozenset({("Stack", "darkroom")})
EMF = json.dumps(
    {
        "_aws": {
            "Timestamp": 1,
            "CloudWatchMetrics": [
                {
                    "Namespace": "Darkroom",
                    "Dimensions": [["Stack"], ["Stack", "Endpoint"]],
                    "Metrics": [{"Name": "ProviderCalls", "Unit": "Count"}],
                }
            ],
        },
        "Stack": "darkroom",
        "Endpoint": "gemini-main",
        "ProviderCalls": [1.0],
    }
)


def widget(*entries: object) -> str:
    return json.dumps({"widgets": [{"properties": {"metrics": [list(e) for e in entries]}}]})  # type: ignore[call-overload]


def test_a_widget_names_its_metric_with_all_dimensions() -> None:
    body = widget(["Darkroom", "RowsDead", "Stack", "darkroom", {"color": "#d62728"}])
    assert list(of_dashboard(body)) == [NamedMetric("Darkroom", "RowsDead", STACK)]


def test_a_search_matches_any_endpoint_of_its_stack_only() -> None:
    schema = '{Darkroom,Endpoint,Stack} MetricName="ProviderCalls" Stack="darkroom"'
    search = f"SEARCH('{schema}', 'Sum', 60)"
    (named,) = of_dashboard(widget([{"expression": search}]))
    both = [m for m in emitted([EMF]) if len(m.dimensions) == 2]
    assert len(both) == 1
    assert named.matches(both[0])
    other = EMF.replace('"Stack": "darkroom"', '"Stack": "other"')
    assert not any(named.matches(m) for m in emitted([other]))


def test_a_metric_without_the_expected_dimension_does_not_match() -> None:
    (named,) = of_alarms(
        [
            {
                "Namespace": "Darkroom",
                "MetricName": "ProviderCalls",
                "Dimensions": [
                    {"Name": "Stack", "Value": "darkroom"},
                    {"Name": "Job", "Value": "j"},
                ],
            }
        ]
    )
    assert not any(named.matches(m) for m in emitted([EMF]))


def test_metric_math_names_the_metrics_it_uses() -> None:
    stat = {"Metric": {"Namespace": "AWS/SQS", "MetricName": "Age", "Dimensions": []}}
    queries = [{"Id": "rate", "Expression": "a * 2"}, {"Id": "a", "MetricStat": stat}]
    assert list(of_alarms([{"Metrics": queries}])) == [NamedMetric("AWS/SQS", "Age", frozenset())]


def test_a_search_that_cannot_be_parsed_is_an_error() -> None:
    with pytest.raises(AssertionError, match="cannot parse"):
        list(
            of_dashboard(widget([{"expression": "SEARCH('MetricName=ProviderCalls', 'Sum', 60)"}]))
        )
