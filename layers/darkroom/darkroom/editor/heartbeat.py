"""How long leases last and how soon things are tried again. Seconds."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil

from darkroom.errors import ServiceUnavailable
from darkroom.ports import RowLedger, RowQueue, Telemetry
from darkroom.rows import Claim


@dataclass(frozen=True, slots=True)
class Timings:
    """A crash is repaired when its lease ends: within two minutes, whatever the time-out is."""

    lease: float = 90.0  # of a row, and the time its message stays hidden
    beat: float = 30.0  # between heartbeats: two may be missed
    held: float = 30.0  # until a row in another worker's hands is looked at again
    trouble: float = 15.0  # until a row that AWS itself failed is tried again
    backoff: float = 10.0  # before a second attempt; doubles with each
    longest_backoff: float = 900.0


TIMINGS = Timings()


# Keeps a worker's messages hidden and its rows leased while it lives, and not much longer.
#
# Both run out 90 s after the last beat, so a crash is repaired within two minutes, whatever the
# time limit of the function is.


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
    """Beats in a thread of its own, at once and then at its timings."""

    queue: RowQueue
    rows: RowLedger
    telemetry: Telemetry
    timings: Timings = TIMINGS

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
            if over.wait(self.timings.beat):
                return

    def beat(self, leases: Leases) -> None:
        """One missed beat is made good by the next: two more fit into a lease."""
        try:
            leases.beat(self.queue, self.rows, self.timings.lease)
        except ServiceUnavailable as error:
            self.telemetry.warning("heartbeat_missed", error=str(error))
        except Exception:  # noqa: BLE001  # the heart goes on beating
            self.telemetry.exception("heartbeat_failed")
