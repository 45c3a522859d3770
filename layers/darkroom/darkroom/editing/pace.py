"""How long leases last and how soon things are tried again. Seconds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """A crash is repaired when its lease ends: within two minutes, whatever the time-out is."""

    lease: float = 90.0  # of a row, and the time its message stays hidden
    beat: float = 30.0  # between heartbeats: two may be missed
    held: float = 30.0  # until a row in another worker's hands is looked at again
    trouble: float = 15.0  # until a row that AWS itself failed is tried again
    backoff: float = 10.0  # before a second attempt; doubles with each
    longest_backoff: float = 900.0


PACE = Pace()
