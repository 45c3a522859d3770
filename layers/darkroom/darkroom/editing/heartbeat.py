"""Keeps a worker's messages hidden and its rows leased while it lives, and not much longer.

Both run out 90 s after the last beat, so a crash is repaired within two minutes, whatever the time
limit of the function is.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil

from darkroom.editing.pace import PACE, Pace
from darkroom.errors import ServiceUnavailable
from darkroom.ledger.values import Claim
from darkroom.ports import RowLedger, RowQueue, Telemetry


@dataclass(slots=True)
class Leases:
    """What one batch holds: receipts of its messages and claims on its rows. Thread-safe."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _receipts: set[str] = field(default_factory=set)
    _claims: dict[str, Claim] = field(default_factory=dict)

    @contextmanager
    def held(self, claim: Claim) -> Iterator[None]:
        with self._lock:
            self._claims[claim.owner] = claim
        try:
            yield
        finally:
            with self._lock:
                self._claims.pop(claim.owner, None)

    def hold(self, receipt: str) -> None:
        with self._lock:
            self._receipts.add(receipt)

    def let_go(self, receipt: str, queue: RowQueue, seconds: int) -> None:
        """Hide the message for `seconds` from now; no beat extends it after that."""
        with self._lock:
            self._receipts.discard(receipt)
            queue.extend([receipt], seconds)

    def beat(self, queue: RowQueue, rows: RowLedger, seconds: float) -> None:
        """Hide and lease for `seconds` more. Raises ServiceUnavailable."""
        with self._lock:
            if self._receipts:
                queue.extend(sorted(self._receipts), ceil(seconds))
            claims = list(self._claims.values())
        if claims:
            rows.renew(claims, seconds)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Beats in a thread of its own, at once and then at its pace."""

    queue: RowQueue
    rows: RowLedger
    telemetry: Telemetry
    pace: Pace = PACE

    @contextmanager
    def beating(self, leases: Leases) -> Iterator[None]:
        over = threading.Event()
        thread = threading.Thread(target=self._run, args=(leases, over), name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _run(self, leases: Leases, over: threading.Event) -> None:
        while True:
            self.beat(leases)
            if over.wait(self.pace.beat):
                return

    def beat(self, leases: Leases) -> None:
        """One missed beat is made good by the next: two more fit into a lease."""
        try:
            leases.beat(self.queue, self.rows, self.pace.lease)
        except ServiceUnavailable as error:
            self.telemetry.warning("heartbeat_missed", error=str(error))
        except Exception:  # noqa: BLE001  # the heart goes on beating
            self.telemetry.exception("heartbeat_failed")
