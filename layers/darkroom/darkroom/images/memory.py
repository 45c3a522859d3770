"""The memory that the rows of one worker may take at once, as shares of one budget.

A row takes its share before its images are loaded, in one step and in the order of arrival, and
only ever gives back: rows cannot wait for each other. What a share covers was measured with ten
rows whose answers arrived at the same moment (`make bench-memory`). During a call an SDK holds the
images three times in base64; an answer waits as JSON until it is parsed. Answers are parsed one at
a time (providers/http.py), for which the budget keeps room.
"""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from darkroom.errors import DeferRow
from darkroom.images.process import MEMORY_BYTES
from darkroom.models import sizes
from darkroom.rows import RowRequest

MIB = 1024 * 1024
MAX_ROW_BYTES = 150 * MIB  # of a row's input images together
_MAX_IMAGE_BYTES = 50 * MIB  # of one, as fetched
# Lambda's runtime (30), this process with both SDKs and boto3 (105), the started image process.
_STARTED_BYTES = 165 * MIB
_SMALLEST_BUDGET = 256 * MIB
_PER_LOADED_BYTE = 2.0  # as it came, and without its metadata
_PER_SENT_BYTE = 5.0
_PER_ANSWER_BYTE = 1.4
_PER_PARSED_BYTE = 3.7  # beside the answers that wait
_PARSED_BYTES = int(27 * MIB * _PER_PARSED_BYTE)  # kept free: one of 4K
_BYTES_PER_PIXEL = 1.6  # of a detailed photo as PNG
_WAIT_SECONDS = 120.0
_RETRY_SECONDS = 30.0


@dataclass(slots=True)
class MemoryShare:
    """A row's part of the budget."""

    budget: "MemoryBudget"
    answer_bytes: int
    held: int

    def images_loaded(self, image_bytes: int) -> bool:
        """Give back what the row's images turned out not to need.

        False when a call with these images needs more than the share.
        """
        needed = self.answer_bytes + int(image_bytes * _PER_SENT_BYTE)
        self.budget.give_back(self, needed)
        return self.held >= min(needed, self.budget.total_bytes)


@dataclass(slots=True)
class MemoryBudget:
    """`total_bytes` for all rows at once; a row that needs more is processed alone. Thread-safe."""

    total_bytes: int
    wait_seconds: float = _WAIT_SECONDS
    _used: int = 0
    _waiting: deque[object] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def of_function(cls, memory_mb: int = 1536) -> "MemoryBudget":
        """What is left of a function's memory beside the two processes and the answer parsed."""
        left = memory_mb * MIB - _STARTED_BYTES - MEMORY_BYTES - _PARSED_BYTES
        return cls(max(left, _SMALLEST_BUDGET))

    @contextmanager
    def share(self, request: RowRequest, image_bytes: int = 0) -> Iterator[MemoryShare]:
        """Room to load the largest images that the row may name, and for its answer.

        Also for a call with images of `image_bytes`, where that is known. Raises DeferRow when
        other rows have not left enough room within `wait_seconds`.
        """
        loaded = min(len(request.references) * _MAX_IMAGE_BYTES, MAX_ROW_BYTES) * _PER_LOADED_BYTE
        answer, parsed = _answer_bytes(request), _answer_bytes(request) * _PER_PARSED_BYTE
        answer_bytes = int(answer * _PER_ANSWER_BYTE + max(0, parsed - _PARSED_BYTES))
        wanted = answer_bytes + int(max(loaded, image_bytes * _PER_SENT_BYTE))
        wanted = min(wanted, self.total_bytes)
        share = MemoryShare(self, answer_bytes, wanted)
        self._take(wanted)
        try:
            yield share
        finally:
            self.give_back(share, 0)

    def give_back(self, share: MemoryShare, kept: int) -> None:
        """Keep `kept` bytes of a share, which never grows."""
        with self._changed:
            kept = min(kept, share.held)
            self._used -= share.held - kept
            share.held = kept
            self._changed.notify_all()

    def _take(self, wanted: int) -> None:
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            granted = self._changed.wait_for(
                lambda: self._waiting[0] is turn and self._used + wanted <= self.total_bytes,
                self.wait_seconds,
            )
            self._waiting.remove(turn)
            self._changed.notify_all()
            if not granted:
                raise DeferRow(
                    "the other rows of this worker left no memory for it",
                    delay_seconds=_RETRY_SECONDS,
                )
            self._used += wanted


def _answer_bytes(request: RowRequest) -> int:
    """Of its size; 2K where that is left to the model."""
    if requested := sizes.parse_size(request.size or ""):
        width, height = requested
        return int(width * height * _BYTES_PER_PIXEL) * request.n
    pixels = sizes.PIXELS.get(request.resolution or "2K", sizes.PIXELS["2K"])
    return int(pixels * _BYTES_PER_PIXEL) * request.n
