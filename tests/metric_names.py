"""The metrics that the dashboard and the alarms use, and those that the functions' logs emit."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SEARCH = re.compile(r"""SEARCH\('\{([^}]+)\}\s+MetricName="(\w+)"([^']*)'""")
_PAIR = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class NamedMetric:
    """A metric with its dimensions; the value None stands for any value, as in a SEARCH."""

    namespace: str
    name: str
    dimensions: frozenset[tuple[str, str | None]]

    def matches(self, emitted: "NamedMetric") -> bool:
        if (self.namespace, self.name) != (emitted.namespace, emitted.name):
            return False
        expected, given = dict(self.dimensions), dict(emitted.dimensions)
        return expected.keys() == given.keys() and all(
            value is None or given[name] == value for name, value in expected.items()
        )


def of_alarms(alarms: Iterable[Mapping[str, Any]]) -> Iterator[NamedMetric]:
    """From CloudWatch's DescribeAlarms."""
    for alarm in alarms:
        if "MetricName" in alarm:
            yield _metric(alarm)
        for query in alarm.get("Metrics", ()):
            if "MetricStat" in query:
                yield _metric(query["MetricStat"]["Metric"])


def of_dashboard(body: str) -> Iterator[NamedMetric]:
    """From CloudWatch's GetDashboard."""
    for widget in json.loads(body)["widgets"]:
        for entry in widget["properties"].get("metrics", ()):
            yield from _of_widget(entry)


def emitted(lines: Iterable[str]) -> Iterator[NamedMetric]:
    """From log lines in the embedded metric format; other lines are skipped."""
    for line in lines:
        if '"_aws"' not in line:
            continue
        document = json.loads(line[line.index("{") :])
        for group in document["_aws"]["CloudWatchMetrics"]:
            for names in group["Dimensions"]:
                values = frozenset((name, str(document[name])) for name in names)
                for metric in group["Metrics"]:
                    assert metric["Name"] in document, f"{metric['Name']} has no value in {line}"
                    yield NamedMetric(group["Namespace"], metric["Name"], values)


def _metric(description: Mapping[str, Any]) -> NamedMetric:
    pairs = frozenset((d["Name"], d["Value"]) for d in description.get("Dimensions", ()))
    return NamedMetric(description["Namespace"], description["MetricName"], pairs)


def _of_widget(entry: Sequence[Any]) -> Iterator[NamedMetric]:
    texts = [part for part in entry if isinstance(part, str)]
    options = next((part for part in entry if isinstance(part, dict)), {})
    if texts:
        assert "." not in texts, f"the shorthand for 'as above' is not supported: {entry}"
        namespace, name, *pairs = texts
        dimensions = frozenset(zip(pairs[::2], pairs[1::2], strict=True))
        yield NamedMetric(namespace, name, dimensions)
    expression = options.get("expression", "")
    found = _SEARCH.findall(expression)
    assert len(found) == expression.count("SEARCH("), f"cannot parse {expression}"
    for schema, name, conditions in found:
        namespace, *names = schema.split(",")
        values = dict(_PAIR.findall(conditions))
        yield NamedMetric(namespace, name, frozenset((n, values.get(n)) for n in names))
