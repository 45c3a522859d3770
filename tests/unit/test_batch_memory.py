"""The submitter and the collector hold one row's images at a time, however many a batch has."""

import io
import random
import tracemalloc
from collections.abc import Callable, Iterator
from typing import BinaryIO

import pytest
from PIL import Image
from pydantic import SecretStr

from darkroom.batches.provider_batch import BatchAnswer, BatchGroup, ProviderBatch
from darkroom.bootstrap import batch_provider
from darkroom.calls import CallPlan, EditResult
from tests.corpus.images import saved
from tests.fakes.batching import PRICE, BatchHarness, FakeBatchProvider

MIB = 1024 * 1024


def photo(side: int = 800) -> bytes:
    """About 1.9 MB that cannot be compressed."""
    noise = Image.frombytes("RGB", (side, side), random.Random(1).randbytes(side * side * 3))
    return saved(noise, "PNG")


class LargeRequests(FakeBatchProvider):
    """With the request lines of OpenAI's adapter, and large answers."""

    def __init__(self, harness: BatchHarness, answer: bytes) -> None:
        super().__init__(harness.clock.now)
        endpoint = harness.secret.value.endpoints[0]
        self.adapter = batch_provider(endpoint, SecretStr("k"))
        self.answer = answer
        self.uploaded = 0
        self.rows = 0

    def request_line(self, custom_id: str, plan: CallPlan) -> bytes:
        self.rows += 1
        return self.adapter.request_line(custom_id, plan)

    def create(
        self, name: str, group: BatchGroup, requests: BinaryIO, timeout_seconds: float
    ) -> ProviderBatch:
        self.uploaded += requests.seek(0, io.SEEK_END)
        lines = io.BytesIO(b'{"custom_id": "row-0", "prompt": ""}\n')
        return super().create(name, group, lines, timeout_seconds)

    def results(self, *_: object, **__: object) -> Iterator[BatchAnswer]:
        def answer(number: int) -> BatchAnswer:
            image = bytearray(self.answer)
            return BatchAnswer(
                f"row-{number}", EditResult((bytes(image),), "m", PRICE), str(number + 1)
            )

        return map(answer, range(self.rows))


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peaks(rows: int, image: bytes) -> tuple[int, int]:
    harness = BatchHarness()
    harness.fetcher.files["photo.png"] = image
    provider = LargeRequests(harness, image)
    harness.providers["openai-main"] = provider
    harness.store.put = lambda *_, **__: True  # type: ignore[method-assign]  # keeps nothing
    harness.upload(queued=rows, mode="batch")
    harness.batch_queue.send(
        [
            harness.message(key=f"{row:06d}", instruction="x", images=("photo.png",))
            for row in range(rows)
        ]
    )
    batch = [received for _ in range(rows) for received in harness.receive(1)]
    submitting = peak_of(lambda: harness.submit(batch))
    assert provider.uploaded > rows * len(image)
    harness.end_batches()
    collecting = peak_of(harness.collect)
    assert harness.ledger.counters(harness.run.job, harness.run.run).succeeded == rows
    return submitting, collecting


@pytest.fixture(scope="module")
def image() -> bytes:
    return photo()


def test_memory_does_not_grow_with_the_number_of_rows(image: bytes) -> None:
    small, large = peaks(3, image), peaks(30, image)
    for few, many in zip(small, large, strict=True):
        assert many < few + 2 * len(image), f"{few / MIB:.1f} MiB became {many / MIB:.1f}"
