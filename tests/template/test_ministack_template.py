"""What MiniStack cannot do is changed in a copy of the template, and nothing else."""

from typing import Any

import pytest

from darkroom_local.ministack_template import adapted
from darkroom_local.processes import ROOT


@pytest.fixture(scope="module")
def resources() -> Any:
    return adapted(ROOT / "template.yaml", {"WorkerProcesses": "7"})["Resources"]


def test_only_alarms_on_metric_math_are_left_out(
    template: dict[str, Any], resources: dict[str, Any]
) -> None:
    left_out = {
        name
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::CloudWatch::Alarm" and name not in resources
    }
    assert left_out == {
        name for name, r in template["Resources"].items() if "Metrics" in r.get("Properties", {})
    }


def test_requests_of_this_machine_may_use_plain_http(resources: dict[str, Any]) -> None:
    for name in ("InputBucketPolicy", "ResultsBucketPolicy", "AccessLogsBucketPolicy"):
        denied = resources[name]["Properties"]["PolicyDocument"]["Statement"][0]
        assert denied["Condition"]["NotIpAddress"] == {"aws:SourceIp": "127.0.0.0/8"}


def test_batch_calls_are_allowed_where_the_single_call_is(resources: dict[str, Any]) -> None:
    (policy,) = resources["SplitterRole"]["Properties"]["Policies"]
    statements = {s["Sid"]: s for s in policy["PolicyDocument"]["Statement"] if "Sid" in s}
    assert statements["QueueRows"]["Action"] == ["sqs:SendMessage", "sqs:SendMessageBatch"]
    assert not any("Batch" in a for a in statements["ReadUploads"]["Action"])


def test_the_number_of_workers_is_a_number(resources: dict[str, Any]) -> None:
    rows = resources["EditorFunction"]["Properties"]["Events"]["Rows"]["Properties"]
    assert rows["ScalingConfig"]["MaximumConcurrency"] == 7
