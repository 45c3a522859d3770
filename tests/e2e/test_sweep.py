"""The sweep on a deployed stack: a row whose message is lost is edited and reported."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from darkroom.aws.ledger_table import LedgerTable
from darkroom.jobs import Run, job_id
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


@contextmanager
def queued(harness: StackHarness, key: str, csv: bytes) -> Iterator[tuple[Run, str | None]]:
    """A job that is split, and whose rows stay in the queue until the end of the block.

    Yields its run and the version of its CSV.
    """
    lambdas, function = harness.info.client("lambda"), harness.info.outputs["EditorFunctionName"]
    (source,) = lambdas.list_event_source_mappings(FunctionName=function)["EventSourceMappings"]
    lambdas.update_event_source_mapping(UUID=source["UUID"], Enabled=False)
    version = harness.put(key, csv)
    ledger = ledger_of(harness)

    def is_split() -> bool:
        run = ledger.current(job_id(key))
        return run is not None and run.split_done

    assert wait_until(is_split, 60, 0.3)
    run = ledger.current(job_id(key))
    assert run is not None
    yield run, version
    lambdas.update_event_source_mapping(UUID=source["UUID"], Enabled=True)


def ledger_of(harness: StackHarness) -> LedgerTable:
    client = harness.info.client("dynamodb")
    return LedgerTable(client, harness.info.outputs["LedgerTableName"])


def test_a_row_whose_message_is_lost_is_queued_again_and_reported(harness: StackHarness) -> None:
    outputs, client = harness.info.outputs, harness.info.client
    with queued(harness, "shop/lost.csv", b"instruction\nA tree\nA house\n") as (run, version):
        client("sqs").purge_queue(QueueUrl=outputs["RowsQueueUrl"])
        # As if the rows had been queued more than an hour ago.
        client("dynamodb").update_item(
            TableName=outputs["LedgerTableName"],
            Key={"job": {"S": run.job}, "item": {"S": f"run#{run.run}"}},
            UpdateExpression="SET queued_at = :earlier",
            ExpressionAttributeValues={":earlier": {"N": str(time.time() - 2 * HOUR)}},
        )
        sweep(harness)
    results = harness.wait("shop/lost", version)
    assert wait_until(lambda: results.summary["state"] != "running", 90, 0.5), results.summary
    assert [row["status"] for row in results.manifest] == ["succeeded", "succeeded"]
    sweep(harness)
    assert [u.job for u in ledger_of(harness).unfinished()] == []


def test_a_stopped_job_is_reported_before_its_messages_return(harness: StackHarness) -> None:
    ledger = ledger_of(harness)
    with queued(harness, "shop/stopped.csv", b"instruction\nA [row:s1] tree\nA house\n") as (
        run,
        version,
    ):
        assert ledger.stop(run.job) is not None
        for _ in range(2):  # the first ends the rows, the second has the report made
            sweep(harness)
        results = harness.wait(run.job, version)
        assert results.summary["state"] == "stopped"
        assert [row["reason"] for row in results.manifest] == ["stopped", "stopped"]
    queue = {"QueueUrl": harness.info.outputs["RowsQueueUrl"]}
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]

    def is_empty() -> bool:
        answer = harness.info.client("sqs").get_queue_attributes(**queue, AttributeNames=names)
        return set(answer["Attributes"].values()) == {"0"}

    assert wait_until(is_empty, 90, 0.5)
    assert not ledger.report_due(run.job)
    assert "s1" not in harness.simulator.stats()["gemini-main"]["calls_by_marker"]
