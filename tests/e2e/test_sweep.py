"""The sweep on a deployed stack: a row whose message is lost is edited and reported."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from darkroom.aws.ledger_table import LedgerTable
from darkroom_local import stack
from darkroom_local.processes import wait_until
from darkroom_local.providers import Config, SimulatedEndpoint
from tests.e2e.harness import StackHarness

pytestmark = pytest.mark.e2e
HOUR = 3600.0


@pytest.fixture(scope="module")
def harness() -> Iterator[StackHarness]:
    config = Config(endpoints={"gemini-main": SimulatedEndpoint()})
    with stack.running(stack="darkroom-sweep", config=config) as info:
        yield StackHarness(info)


def sweep(harness: StackHarness) -> Any:
    """Invoke the splitter as its schedule does."""
    events = harness.info.client("events")
    rules = [r for r in events.list_rules()["Rules"] if "ScheduleExpression" in r]
    targets = [t for r in rules for t in events.list_targets_by_rule(Rule=r["Name"])["Targets"]]
    (target,) = [t for t in targets if "sweep" in t["Input"]]
    answer = harness.info.client("lambda").invoke(
        FunctionName=target["Arn"].partition(":function:")[2].partition(":")[0],
        Payload=target["Input"],
    )
    assert "FunctionError" not in answer, json.loads(answer["Payload"].read())


def test_a_row_whose_message_is_lost_is_queued_again_and_reported(harness: StackHarness) -> None:
    outputs, client = harness.info.outputs, harness.info.client
    lambdas, function = client("lambda"), outputs["EditorFunctionName"]
    (source,) = lambdas.list_event_source_mappings(FunctionName=function)["EventSourceMappings"]
    lambdas.update_event_source_mapping(UUID=source["UUID"], Enabled=False)
    version = harness.put("shop/lost.csv", b"instruction\nA tree\nA house\n")
    ledger = LedgerTable(client("dynamodb"), outputs["LedgerTableName"])
    queue = outputs["RowsQueueUrl"]

    def is_split() -> bool:
        run = ledger.current("shop/lost")
        return run is not None and run.split_done

    assert wait_until(is_split, 60, 0.3)
    client("sqs").purge_queue(QueueUrl=queue)
    run = ledger.current("shop/lost")
    assert run is not None
    # As if the rows had been queued more than an hour ago.
    client("dynamodb").update_item(
        TableName=outputs["LedgerTableName"],
        Key={"job": {"S": run.job}, "item": {"S": f"run#{run.run}"}},
        UpdateExpression="SET queued_at = :earlier",
        ExpressionAttributeValues={":earlier": {"N": str(time.time() - 2 * HOUR)}},
    )
    sweep(harness)
    lambdas.update_event_source_mapping(UUID=source["UUID"], Enabled=True)
    results = harness.wait("shop/lost", version)
    assert wait_until(lambda: results.summary["state"] != "running", 90, 0.5), results.summary
    assert [row["status"] for row in results.manifest] == ["succeeded", "succeeded"]
    sweep(harness)
    assert [u.job for u in ledger.unfinished()] == []
