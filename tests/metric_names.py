"""Which metrics the dashboard and the alarms name, and which the functions' logs emit."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SEARCH = re.compile(r"""SEARCH\('\{([^}]+)\}\s+MetricName="(\w+)"([^']*)'""")
_PAIR = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Metric:
    """A dimension with the value None stands for any value (what SEARCH leaves open)."""

    namespace: str
    name: str
    dimensions: frozenset[tuple[str, str | None]]

    def matches(self, emitted: "Metric") -> bool:
        if (self.namespace, self.name) != (emitted.namespace, emitted.name):
            return False
        asked, given = dict(self.dimensions), dict(emitted.dimensions)
        return asked.keys() == given.keys() and all(
            value is None or given[name] == value for name, value in asked.items()
        )


def of_alarms(alarms: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    """From CloudWatch's DescribeAlarms."""
    for alarm in alarms:
        if "MetricName" in alarm:
            yield _metric(alarm)
        for query in alarm.get("Metrics", ()):
            if "MetricStat" in query:
                yield _metric(query["MetricStat"]["Metric"])


def of_dashboard(body: str) -> Iterator[Metric]:
    """From CloudWatch's GetDashboard."""
    for widget in json.loads(body)["widgets"]:
        for entry in widget["properties"].get("metrics", ()):
            yield from _of_widget(entry)


def emitted(lines: Iterable[str]) -> Iterator[Metric]:
    """From log lines in the embedded metric format; other lines are passed over."""
    for line in lines:
        if '"_aws"' not in line:
            continue
        told = json.loads(line[line.index("{") :])
        for group in told["_aws"]["CloudWatchMetrics"]:
            for names in group["Dimensions"]:
                values = frozenset((name, str(told[name])) for name in names)
                for metric in group["Metrics"]:
                    assert metric["Name"] in told, f"{metric['Name']} has no value in {line}"
                    yield Metric(group["Namespace"], metric["Name"], values)


def _metric(told: Mapping[str, Any]) -> Metric:
    pairs = frozenset((d["Name"], d["Value"]) for d in told.get("Dimensions", ()))
    return Metric(told["Namespace"], told["MetricName"], pairs)


def _of_widget(entry: Sequence[Any]) -> Iterator[Metric]:
    texts = [part for part in entry if isinstance(part, str)]
    options = next((part for part in entry if isinstance(part, dict)), {})
    if texts:
        assert "." not in texts, f"the shorthand for 'as above' hides what is meant: {entry}"
        namespace, name, *pairs = texts
        dimensions = frozenset(zip(pairs[::2], pairs[1::2], strict=True))
        yield Metric(namespace, name, dimensions)
    expression = options.get("expression", "")
    found = _SEARCH.findall(expression)
    assert len(found) == expression.count("SEARCH("), f"cannot read {expression}"
    for schema, name, rest in found:
        namespace, *names = schema.split(",")
        known = dict(_PAIR.findall(rest))
        yield Metric(namespace, name, frozenset((n, known.get(n)) for n in names))
