"""Mutated images of tests/corpus/images.py through every operation of the image process.

    python -m tests.fuzz.fuzz_images --count 10000 --seconds 600

Whatever an image contains, each operation ends with an image or with a sentence, within 5 s of CPU
time and the memory of the process, which goes on. Prints a table of what was found; an image that
breaks a rule is stored in build/fuzz/images and ends the run with an error. `tests/unit` runs a
small share, always the same.
"""

import argparse
import hashlib
import random
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from darkroom.images.process import MEMORY_BYTES
from tests.corpus.images import CASES
from tests.fakes.measured_images import Measured, MeasuredImages, measured_images

MAX_CPU_SECONDS = 5.0
# Beside what the process has when it starts.
MAX_PEAK_BYTES = MEMORY_BYTES + (64 << 20)
OPERATIONS: dict[str, dict[str, Any]] = {
    "open_source": {},
    "open_mask": {},
    "verify": {},
    "thumbnail": {"longest_side": 320},
    "preview": {"longest_side": 1_280, "embedded_side": 320},
    "render": {"image_format": "JPEG"},
    "fit": {"mime_types": ["image/png", "image/jpeg"], "max_bytes": 200_000},
    "square": {},
    "has_transparency": {},
}
_LONGEST_SEED = 60_000
_SEEDS = [data for data, _ in CASES.values() if 8 < len(data) <= _LONGEST_SEED]
_NUMBERS = (0, 1, 2, 255, 256, 4096, 8000, 32_767, 65_535, 2**31 - 1, 2**32 - 1)
_HEADER = 200  # bytes that are edited more often than others
_FOUND = Path("build/fuzz/images")


def _flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.randint(1, 12)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _truncate(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(1, len(data) + 1) :]


def _delete(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randint(1, 40)]
    data += b"\0"


def _duplicate(rng: random.Random, data: bytearray) -> None:
    start = rng.randrange(len(data))
    part = data[start : start + rng.randint(1, 400)]
    data[start:start] = part * rng.choice((1, 2, 50))


def _edit_header(rng: random.Random, data: bytearray) -> None:
    form = rng.choice(("<H", ">H", "<I", ">I"))
    number = rng.choice(_NUMBERS) % (1 << 8 * struct.calcsize(form))
    start = rng.randrange(min(_HEADER, len(data)))
    data[start : start + struct.calcsize(form)] = struct.pack(form, number)


def _splice(rng: random.Random, data: bytearray) -> None:
    other = rng.choice(_SEEDS)
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :] or b"\0"


_MUTATIONS: tuple[Callable[[random.Random, bytearray], None], ...] = (
    _flip,
    _truncate,
    _delete,
    _duplicate,
    _edit_header,
    _edit_header,
    _edit_header,
    _splice,
)


def mutated(rng: random.Random) -> bytes:
    """An image with one to four changes; a PNG mostly with checksums that are right again."""
    data = bytearray(rng.choice(_SEEDS))
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_MUTATIONS)(rng, data)
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        _correct_checksums(data)
    return bytes(data)


def _correct_checksums(png: bytearray) -> None:
    position = 8
    while position + 12 <= len(png):
        end = position + 8 + int.from_bytes(png[position : position + 4])
        if end + 4 > len(png):
            return
        png[end : end + 4] = struct.pack(">I", zlib.crc32(png[position + 4 : end]))
        position = end + 4


@dataclass
class Findings:
    images: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    peak_bytes: int = 0
    cpu_seconds: float = 0.0
    broken_rules: list[str] = field(default_factory=list)

    def add(self, operation: str, data: bytes, used: Measured) -> None:
        kind = "image" if not isinstance(used.outcome, str) else _kind(used.outcome)
        self.outcomes[kind] += 1
        self.peak_bytes = max(self.peak_bytes, used.peak_bytes)
        self.cpu_seconds = max(self.cpu_seconds, used.cpu_seconds)
        too_much = used.cpu_seconds > MAX_CPU_SECONDS or used.peak_bytes > MAX_PEAK_BYTES
        if too_much or "crash" in kind or "0 s to decode" in kind:
            _FOUND.mkdir(parents=True, exist_ok=True)
            name = f"{operation}-{hashlib.sha256(data).hexdigest()[:12]}"
            (_FOUND / name).write_bytes(data)
            self.broken_rules.append(f"{name}: {used}")

    def lines(self) -> Iterator[str]:
        yield f"images                {self.images}"
        yield f"operations            {self.outcomes.total()}"
        yield f"highest peak          {self.peak_bytes / 2**20:.0f} MiB"
        yield f"longest               {self.cpu_seconds:.2f} s of CPU time"
        for kind, count in self.outcomes.most_common():
            yield f"  {count:7}  {kind}"


def _kind(sentence: str) -> str:
    """The sentence without its numbers."""
    words = sentence.partition(":")[0].split()
    return " ".join("0" if word[0].isdigit() else word for word in words)


def run(images: MeasuredImages, seed: int, count: int, seconds: float) -> Findings:
    """`count` mutated images, or as many as there is time for."""
    findings, end = Findings(), time.monotonic() + seconds
    while findings.images < count and time.monotonic() < end:
        data = mutated(random.Random(seed * 1_000_003 + findings.images))
        findings.images += 1
        for operation, arguments in OPERATIONS.items():
            findings.add(operation, data, images.run(operation, data, **arguments))
    return findings


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Decode mutated images.")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args(arguments)
    with measured_images() as images:
        findings = run(images, given.seed, given.count, given.seconds)
    lines = (f"seed                  {given.seed}", *findings.lines(), *findings.broken_rules)
    print(*lines, f"processes started     {images.started}", sep="\n")  # noqa: T201 - its purpose
    return 1 if findings.broken_rules else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
