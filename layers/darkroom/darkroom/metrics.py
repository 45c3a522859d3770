"""Every CloudWatch metric that Darkroom emits: its name, unit and dimensions. See docs/metrics.md.

Each metric has the dimension Stack; one about an endpoint is emitted with Stack and Endpoint too.
No further dimension: CloudWatch bills about $0.30 a month for each combination.
"""

from enum import StrEnum

NAMESPACE = "Darkroom"


class Metric(StrEnum):
    """A metric's name, as the dashboard and the alarms use it."""

    ROWS_SUCCEEDED = "RowsSucceeded"
    ROWS_FAILED = "RowsFailed"
    ROWS_DEAD = "RowsDead"
    FALLBACK_USED = "FallbackUsed"
    DUPLICATE_SUPPRESSED = "DuplicateSuppressed"
    POSSIBLE_DUPLICATE_CHARGES = "PossibleDuplicateCharges"
    COST_USD = "CostUSD"
    PROVIDER_CALLS = "ProviderCalls"
    PROVIDER_ERRORS = "ProviderErrors"
    PROVIDER_LATENCY = "ProviderLatency"
    RATE_LIMITED = "RateLimited"
    SLOT_WAIT = "SlotWait"
    BREAKER_OPENED = "BreakerOpened"
    KEY_REJECTED = "KeyRejected"
    SECRET_UNUSABLE = "SecretUnusable"  # noqa: S105  # a name
    ROW_AGE = "RowAge"
    ROWS_WAITING = "RowsWaiting"
    BATCH_AGE = "BatchAge"

    @property
    def unit(self) -> str:
        """CloudWatch's name of the unit."""
        return _UNITS.get(self, "Count")


_UNITS = {
    Metric.COST_USD: "None",
    Metric.PROVIDER_LATENCY: "Milliseconds",
    Metric.SLOT_WAIT: "Milliseconds",
    Metric.ROW_AGE: "Seconds",
    Metric.BATCH_AGE: "Seconds",
}
