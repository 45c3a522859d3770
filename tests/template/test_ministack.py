"""The one-machine AWS starts on its own port, and leaves nothing behind."""

import os
import subprocess
import sys
import time

import boto3
import pytest

from darkroom_local import ministack
from darkroom_local.processes import LocalStackError, free_port, wait_until


def test_two_ministacks_run_side_by_side_and_share_nothing() -> None:
    with ministack.running() as one, ministack.running() as other:
        bucket = "same-name"
        for stack in (one, other):
            s3 = boto3.client(
                "s3",
                endpoint_url=stack.url,
                aws_access_key_id=ministack.ACCESS_KEY,
                aws_secret_access_key=ministack.SECRET_KEY,
                region_name=ministack.REGION,
            )
            assert s3.list_buckets()["Buckets"] == []
            s3.create_bucket(Bucket=bucket)
            s3.close()
    for stack in (one, other):
        assert not stack.state_dir.exists()
        with pytest.raises(ProcessLookupError):
            os.killpg(stack.pid, 0)


def test_ministack_ends_when_its_parent_is_killed() -> None:
    script = (
        "import time; from darkroom_local import ministack\n"
        "stack = ministack.start(); print(stack.pid, stack.state_dir, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    group, state = parent.stdout.readline().split()
    parent.kill()
    parent.wait()
    parent.stdout.close()

    def gone() -> bool:
        try:
            os.killpg(int(group), 0)
        except ProcessLookupError:
            return True
        return False

    assert wait_until(gone, seconds=10)
    subprocess.run(["rm", "-r", state], check=True)


def test_a_taken_port_is_said_in_words() -> None:
    with ministack.running() as stack:
        port = int(stack.url.rsplit(":", 1)[1])
        started = time.monotonic()
        with pytest.raises(LocalStackError, match="already in use"):
            ministack.start(port=port)
        assert time.monotonic() - started < ministack.START_SECONDS
    assert free_port() > 0


def test_contract_fixture_gives_working_clients(aws_client: object) -> None:
    assert callable(aws_client)
    sqs = aws_client("sqs")
    url = sqs.create_queue(QueueName="conftest-probe")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="hello")
    assert sqs.receive_message(QueueUrl=url)["Messages"][0]["Body"] == "hello"
    sqs.delete_queue(QueueUrl=url)
