"""MiniStack starts on its own port, and leaves nothing behind."""

import subprocess
import sys
import time

import pytest

from darkroom_local import ministack
from darkroom_local.processes import LocalStackError, group_exists, wait_until


def test_two_ministacks_run_side_by_side_and_share_nothing() -> None:
    with ministack.running() as one, ministack.running() as other:
        bucket = "same-name"
        for stack in (one, other):
            s3 = ministack.session().client("s3", endpoint_url=stack.url)
            assert s3.list_buckets()["Buckets"] == []
            s3.create_bucket(Bucket=bucket)
            s3.close()
    for stack in (one, other):
        assert not stack.state_dir.exists()
        assert not group_exists(stack.process.pid)


def test_ministack_ends_when_its_parent_is_killed() -> None:
    script = (
        "import time; from darkroom_local import ministack\n"
        "stack = ministack.start()\n"
        "print(stack.process.pid, stack.state_dir, flush=True)\n"
        "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    group, state = parent.stdout.readline().split()
    parent.kill()
    parent.wait()
    parent.stdout.close()

    assert wait_until(lambda: not group_exists(int(group)), seconds=30)
    subprocess.run(["rm", "-r", state], check=True)


def test_a_port_in_use_is_reported() -> None:
    with ministack.running() as stack:
        port = int(stack.url.rsplit(":", 1)[1])
        started = time.monotonic()
        with pytest.raises(LocalStackError, match="already in use"):
            ministack.start(port=port)
        assert time.monotonic() - started < ministack.START_SECONDS


def test_the_client_fixture_reaches_ministack(aws_client: object) -> None:
    assert callable(aws_client)
    sqs = aws_client("sqs")
    url = sqs.create_queue(QueueName="conftest-probe")["QueueUrl"]
    sqs.send_message(QueueUrl=url, MessageBody="hello")
    assert sqs.receive_message(QueueUrl=url)["Messages"][0]["Body"] == "hello"
    sqs.delete_queue(QueueUrl=url)
