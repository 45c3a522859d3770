"""A job with mode=batch on a deployed stack, against the simulated batches of both providers."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from darkroom_local import stack
from darkroom_local.processes import wait_until
from darkroom_local.providers import Config, SimulatedEndpoint
from tests.e2e.harness import Results, StackHarness, encoded_image

pytestmark = pytest.mark.e2e
ROWS = 6
CSV = "image_url,instruction,sku\n" + "".join(
    f"photos/{row % 2}.png,Make it look like evening {row},A-{row}\n" for row in range(ROWS)
)
CONFIG = Config(endpoints={"gemini-main": SimulatedEndpoint(), "openai-main": SimulatedEndpoint()})


@pytest.fixture(scope="module")
def harness() -> Iterator[StackHarness]:
    with stack.running(stack="darkroom-batches", config=CONFIG) as info:
        harness = StackHarness(info)
        harness.put("shop/photos/0.png", encoded_image("teal"))
        harness.put("shop/photos/1.png", encoded_image("orange"))
        yield harness


def collect(harness: StackHarness) -> None:
    """As the schedule does every five minutes."""
    function = harness.info.outputs["CollectorFunctionName"]
    answer = harness.info.client("lambda").invoke(FunctionName=function, Payload=b"{}")
    assert "FunctionError" not in answer, answer["Payload"].read()


def run(harness: StackHarness, key: str, body: str, **options: str) -> Results:
    metadata = {name.replace("_", "-"): value for name, value in options.items()}
    version = harness.put(key, body.encode(), metadata)
    results = Results(
        harness.s3, harness.info.outputs["ResultsBucketName"], key.removesuffix(".csv")
    )

    def is_done() -> bool:
        collect(harness)
        return results.is_for(version)

    assert wait_until(is_done, 200, 3.0), f"{key} was not reported"
    return results


def calls(harness: StackHarness) -> Any:
    return harness.simulator.stats()


@pytest.fixture(scope="module")
def live(harness: StackHarness) -> Results:
    return harness.run("shop/live.csv", CSV.encode())


@pytest.fixture(scope="module")
def batch(harness: StackHarness, live: Results) -> Results:
    return run(harness, "shop/batch.csv", CSV, mode="batch")


def test_job_with_mode_batch_makes_every_image_at_half_the_price(
    live: Results, batch: Results
) -> None:
    assert [line["status"] for line in batch.manifest] == ["succeeded"] * ROWS
    for line in batch.manifest:
        assert batch.metadata(line)["mode"] == "batch"
        assert batch.image(line).size[0] > 0
    costs = [sum(float(line["cost_usd"]) for line in job.manifest) for job in (live, batch)]
    assert costs[1] / costs[0] == pytest.approx(0.5, abs=0.01)


def test_the_batch_interface_is_used_and_its_files_are_deleted(
    harness: StackHarness, batch: Results
) -> None:
    table = harness.info.client("dynamodb")
    found = table.query(
        TableName=harness.info.outputs["LedgerTableName"],
        KeyConditionExpression="job = :list",
        ExpressionAttributeValues={":list": {"S": "batches"}},
    )["Items"]
    assert found
    assert {item["batch"]["M"]["state"]["S"] for item in found} == {"closed"}


def test_gallery_has_both_images_of_a_row(batch: Results) -> None:
    names = batch.names()
    assert len([name for name in names if name.endswith("-before.webp")]) == ROWS
    assert len([name for name in names if name.endswith("-after.webp")]) == ROWS
    assert json.dumps(batch.summary)
