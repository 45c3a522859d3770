"""The demo's job with mode=batch, and with mode=flex, on a deployed stack."""

import functools
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from darkroom.aws.batch_table import BatchTable
from darkroom_local import stack
from darkroom_local.demo import EXAMPLES, PHOTO_HOST
from darkroom_local.processes import LOOPBACK, serving, wait_until
from darkroom_local.providers import Config, Fault, FaultKind, SimulatedEndpoint, When
from tests.e2e.harness import Results, StackHarness

pytestmark = pytest.mark.e2e
REFUSED = Fault(kind=FaultKind.REFUSED, when=When(prompt_contains="brand's logo"))
CONFIG = Config(
    endpoints={
        "gemini-main": SimulatedEndpoint(faults=(REFUSED,)),
        "openai-main": SimulatedEndpoint(),
    }
)


@pytest.fixture(scope="module")
def harness() -> Iterator[StackHarness]:
    with stack.running(stack="darkroom-batches", config=CONFIG) as info:
        harness = StackHarness(info)
        for photo in (EXAMPLES / "photos").iterdir():
            for folder in ("live", "batch", "flex"):
                harness.put(f"{folder}/photos/{photo.name}", photo.read_bytes())
        yield harness


@pytest.fixture(scope="module")
def csv() -> Iterator[bytes]:
    """The demo's rows; those with a URL have one of this machine."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(EXAMPLES / "photos"))
    with serving(ThreadingHTTPServer((LOOPBACK, 0), handler)) as host:
        yield (EXAMPLES / "photos.csv").read_text().replace(PHOTO_HOST, host).encode()


def collect(harness: StackHarness) -> None:
    """As the schedule does every five minutes."""
    function = harness.info.outputs["CollectorFunctionName"]
    answer = harness.info.client("lambda").invoke(FunctionName=function, Payload=b"{}")
    assert "FunctionError" not in answer, answer["Payload"].read()


@pytest.fixture(scope="module")
def live(harness: StackHarness, csv: bytes) -> Results:
    return harness.run("live/photos.csv", csv)


@pytest.fixture(scope="module")
def batch(harness: StackHarness, csv: bytes) -> Results:
    version = harness.put("batch/photos.csv", csv, {"mode": "batch"})
    results = Results(harness.s3, harness.info.outputs["ResultsBucketName"], "batch/photos")

    def is_done() -> bool:
        collect(harness)
        return results.is_for(version)

    assert wait_until(is_done, 240, 3.0), "the job was not reported"
    return results


def test_rows_end_in_batches_as_they_do_live(live: Results, batch: Results) -> None:
    outcomes = [[(line["status"], line["reason"]) for line in r.manifest] for r in (live, batch)]
    assert outcomes[0] == outcomes[1]
    assert ("failed", "refused") in outcomes[1]
    assert outcomes[1].count(("succeeded", "")) > 5
    for line in batch.manifest:
        if line["status"] == "succeeded":
            assert batch.metadata(line)["mode"] == "batch"
            assert min(batch.image(line).size) > 0


def test_the_bill_is_half_that_of_calls(live: Results, batch: Results) -> None:
    pairs = [
        (float(one["cost_usd"]), float(other["cost_usd"]))
        for one, other in zip(live.manifest, batch.manifest, strict=True)
        if one["status"] == other["status"] == "succeeded"
    ]
    called, batched = (sum(costs) for costs in zip(*pairs, strict=True))
    assert batched / called == pytest.approx(0.5, abs=0.01)


def test_batches_are_closed_and_their_files_deleted(harness: StackHarness, batch: Results) -> None:
    info = harness.info
    table = BatchTable(info.client("dynamodb"), info.outputs["LedgerTableName"])
    assert list(table.open()) == []
    stats: Any = harness.simulator.stats()
    assert sum(endpoint.get("batches", 0) for endpoint in stats.values()) > 0
    assert sum(endpoint.get("files", 0) for endpoint in stats.values()) == 0


def test_the_gallery_has_both_images_of_the_rows(live: Results, batch: Results) -> None:
    """Those of input images are stored before it is known whether their rows succeed."""
    more = thumbnails(batch) - thumbnails(live)
    assert thumbnails(live) <= thumbnails(batch)
    assert all(name.endswith("-before.webp") for name in more)


def test_a_flex_job_is_called_for_in_that_tier_at_half_the_price(
    harness: StackHarness, csv: bytes, live: Results
) -> None:
    flex = harness.run("flex/photos.csv", csv, {"mode": "flex"})
    pairs = [
        (one, other)
        for one, other in zip(live.manifest, flex.manifest, strict=True)
        if one["status"] == other["status"] == "succeeded" and one["provider"] == "gemini"
    ]
    assert len(pairs) > 3
    assert {other["mode"] for _, other in pairs} == {"flex"}
    assert {other["provider"] for other in flex.manifest} <= {"gemini", ""}
    called, at_half = (
        sum(float(row["cost_usd"]) for row in rows) for rows in zip(*pairs, strict=True)
    )
    assert at_half / called == pytest.approx(0.5, abs=0.01)
    calls = harness.simulator.stats()["gemini-main"]["service_tiers"]
    assert calls["flex"] >= len(pairs)


def thumbnails(results: Results) -> set[str]:
    return {name for name in results.names() if name.endswith(("-before.webp", "-after.webp"))}
