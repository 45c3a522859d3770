"""The leases of an invocation: its messages stay hidden and its rows claimed while it is alive.

They end 90 s after the last heartbeat, so a crash is repaired within two minutes, whatever the
time-out of the function is.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil

from darkroom.errors import ServiceUnavailable
from darkroom.ledger.rows import LEASE_SECONDS
from darkroom.ports import RowLedger, RowQueue, Telemetry
from darkroom.rows import Claim

_MAX_HIDDEN_SECONDS = 11 * 3600.0  # SQS allows 12 h from the receive


@dataclass(frozen=True, slots=True)
class Timings:
    lease_seconds: float = LEASE_SECONDS  # of a row, and how long its message stays hidden
    heartbeat_seconds: float = 30.0  # two may be missed
    held_delay_seconds: float = 30.0  # before a retry of a row that another worker holds
    aws_delay_seconds: float = 15.0  # before a retry after an AWS error
    backoff_seconds: float = 10.0  # before the second attempt; doubles with each
    backoff_cap_seconds: float = 900.0
    step_seconds: float = 0.25  # how often a free thread looks for work
    flush_seconds: float = 60.0  # between two prints of the metrics and completion checks
    receive_wait_seconds: int = 2  # of a request for further messages


TIMINGS = Timings()


@dataclass(slots=True)
class Leases:
    """The messages and the claims of one invocation, which a heartbeat renews. Thread-safe."""

    queue: RowQueue
    rows: RowLedger
    telemetry: Telemetry
    timings: Timings = TIMINGS
    alone: bool = True  # at most one row is in work
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _receipts: set[str] = field(default_factory=set)
    _claims: dict[str, Claim] = field(default_factory=dict)

    def hold(self, receipts: Iterable[str]) -> None:
        """Renew these messages from now on."""
        with self._lock:
            self._receipts.update(receipts)

    def drop(self, receipts: Iterable[str]) -> None:
        with self._lock:
            self._receipts.difference_update(receipts)

    @contextmanager
    def claimed(self, claim: Claim) -> Iterator[None]:
        with self._lock:
            self._claims[claim.owner] = claim
        try:
            yield
        finally:
            with self._lock:
                self._claims.pop(claim.owner, None)

    def return_messages(self, receipts: Sequence[str], seconds: float) -> None:
        """Hide the messages for `seconds` from now. Only a heartbeat under way may extend that."""
        self.drop(receipts)
        try:
            self.queue.extend(receipts, ceil(min(max(seconds, 0.0), _MAX_HIDDEN_SECONDS)))
        except ServiceUnavailable as error:  # delivered again when their visibility ends
            self.telemetry.warning("not_hidden", error=str(error))

    def renew(self) -> None:
        """Hide the messages and lease the rows for another `lease_seconds`.

        Errors are those of one message request or one row, and are left to the next heartbeat: a
        lease lasts for three.
        """
        seconds = self.timings.lease_seconds
        with self._lock:
            receipts, claims = sorted(self._receipts), list(self._claims.values())
        self._renew(lambda: self.queue.extend(receipts, ceil(seconds)))
        for claim in claims:
            self._renew(lambda claim=claim: self.rows.renew([claim], seconds))  # type: ignore[misc]  # mypy cannot infer a lambda with a default

    def _renew(self, request: Callable[[], None]) -> None:
        try:
            request()
        except ServiceUnavailable as error:
            self.telemetry.warning("heartbeat_missed", error=str(error))
        except Exception:  # noqa: BLE001  # a bug must not stop the heartbeat
            self.telemetry.exception("heartbeat_failed")
