"""The image process, with the memory and CPU time that each image takes in it."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkroom.images.process import ImageProcess, Rejected, Reply

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Measured:
    """`outcome`: the reply, or the sentence of the rejection. `peak_bytes`: resident, at most."""

    outcome: Reply | str
    peak_bytes: int
    cpu_seconds: float


@dataclass
class MeasuredImages:
    """Linux only: the kernel keeps the peak, and forgets it on request (man 5 proc)."""

    process: ImageProcess = field(default_factory=ImageProcess)
    started: int = 0
    _pid: int = 0

    def run(self, operation: str, data: bytes, **arguments: Any) -> Measured:
        before = self._cpu_seconds(self._child())
        Path(f"/proc/{self._pid}/clear_refs").write_text("5")
        outcome: Reply | str
        try:
            outcome = self.process.run(operation, data, arguments)
        except Rejected as rejected:
            outcome = str(rejected)
        if self.process._child is None or self.process._child.process.pid != self._pid:
            return Measured(outcome, 0, 0.0)  # it was lost with its figures
        return Measured(outcome, self._peak_bytes(), self._cpu_seconds(self._pid) - before)

    def _child(self) -> int:
        if self.process._child is None:
            self.process._child = self.process._start()
        pid = self.process._child.process.pid
        self.started += pid != self._pid
        self._pid = pid
        return pid

    def _peak_bytes(self) -> int:
        status = Path(f"/proc/{self._pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024

    @staticmethod
    def _cpu_seconds(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS


@contextmanager
def measured_images() -> Iterator[MeasuredImages]:
    images = MeasuredImages()
    with closing(images.process):
        yield images
