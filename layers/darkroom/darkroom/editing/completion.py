"""Whoever settles a job's last row asks for its report."""

from collections.abc import Callable
from dataclasses import dataclass

from darkroom.ports import RunLedger, Telemetry


@dataclass(frozen=True, slots=True)
class Completion:
    """`on_complete` invokes the reporter for a job; asking more than once is harmless."""

    runs: RunLedger
    on_complete: Callable[[str], None]
    telemetry: Telemetry

    def check(self, job: str) -> bool:
        """True when the report was asked for. Raises ServiceUnavailable: check again."""
        if not self.runs.report_due(job):
            return False
        self.telemetry.info("job_complete", job=job)
        self.on_complete(job)
        return True
