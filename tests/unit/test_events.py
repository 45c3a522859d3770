"""Upload events and settings, and the files in events/: consistent, and as functions get them."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from darkroom.aws.events import MAX_RESTARTS, LostUploads, continuation_event, uploads_in
from darkroom.errors import ConfigurationError, ServiceUnavailable
from darkroom.rows import RowMessage
from darkroom.settings import Settings
from darkroom.splitter import CsvUploaded
from darkroom_local.sam_local import EVENTS, prepared_events
from tests.fakes.splitting import SplitterHarness

EXAMPLE = json.loads((EVENTS / "env.json").read_text())["Parameters"]


QUEUE = "https://sqs/lost"


@dataclass
class FakeSqs:
    """The queue of lost events, by receipt: received messages are hidden."""

    bodies: dict[str, str]
    received: set[str] = field(default_factory=set)

    def receive_message(self, **request: Any) -> dict[str, Any]:
        assert request["QueueUrl"] == QUEUE
        batch = [r for r in self.bodies if r not in self.received][: request["MaxNumberOfMessages"]]
        self.received.update(batch)
        return {"Messages": [{"ReceiptHandle": r, "Body": self.bodies[r]} for r in batch]}

    def delete_message(self, **request: Any) -> None:
        del self.bodies[request["ReceiptHandle"]]


def lost(payload: Any) -> str:
    return json.dumps(
        {"requestContext": {"condition": "RetriesExhausted"}, "requestPayload": payload}
    )


def test_lost_uploads_are_started_again_and_other_events_stay() -> None:
    upload = continuation_event(uploaded())
    uploads = {f"upload {n}": lost(upload) for n in range(12)}
    others = {
        "report": lost({"job": "jobs/p"}),
        "sweep": lost({"sweep": True}),
        "spent": lost({**upload, "restarts": MAX_RESTARTS}),
        "odd": lost({"Records": [{}]}),
        "text": "not json",
        "list": "[]",
    }
    started = list[Any]()
    sqs: Any = FakeSqs(others | uploads)
    assert LostUploads(sqs, QUEUE, started.append).restart_uploads() == 12
    assert sqs.bodies == others
    assert started == [{**upload, "restarts": 1}] * 12
    assert list(uploads_in(started[0])) == [uploaded()]


def test_an_upload_that_cannot_be_started_stays_lost() -> None:
    def fail(_: Any) -> None:
        raise ServiceUnavailable("no answer")

    sqs: Any = FakeSqs({"upload": lost(continuation_event(uploaded()))})
    with pytest.raises(ServiceUnavailable):
        LostUploads(sqs, QUEUE, fail).restart_uploads()
    assert len(sqs.bodies) == 1


def event(name: str) -> Any:
    return json.loads((EVENTS / name).read_text())


def uploaded() -> CsvUploaded:
    (upload,) = uploads_in(event("splitter-s3-put.json"))
    return upload


def test_the_continuation_is_the_event_that_the_splitter_sends_itself() -> None:
    assert event("splitter-continue.json") == continuation_event(uploaded())


def test_the_batch_contains_the_messages_that_the_splitter_sends_for_the_csv() -> None:
    upload, csv = uploaded(), (EVENTS / "sam-local.csv").read_bytes()
    assert upload.size == len(csv)
    harness = SplitterHarness()
    harness.bucket.versions[upload.source.version_id] = (csv, {})
    harness.split(upload)
    sent = [message.model_copy(update={"queued_at": 0.0}) for message in harness.queue.sent]
    records = event("editor-sqs-batch.json")["Records"]
    assert [RowMessage.model_validate_json(r["body"]) for r in records] == sent


def test_the_environment_becomes_typed_settings() -> None:
    assert Settings.from_environment(EXAMPLE).input_bucket == EXAMPLE["INPUT_BUCKET"]
    settings = Settings.from_environment({**EXAMPLE, "ROWS_PER_WORKER": "7", "PATH": "/usr/bin"})
    assert (settings.rows_per_worker, settings.on_unknown_outcome) == (7, "retry")


@pytest.mark.parametrize(("name", "value"), [("LEDGER_TABLE", None), ("ROWS_PER_WORKER", "many")])
def test_a_missing_or_invalid_variable_is_named(name: str, value: str | None) -> None:
    environment = {k: v for k, v in {**EXAMPLE, name: value}.items() if v is not None}
    with pytest.raises(ConfigurationError, match=name):
        Settings.from_environment(environment)


def test_prepared_events_contain_the_names_of_the_stack_and_none_of_the_example() -> None:
    deployed = {name: f"{name.lower()}-of-mine" for name in EXAMPLE}
    files = prepared_events(deployed)
    assert set(files) == {path.name for path in Path(EVENTS).glob("*.json")}
    assert '"input_bucket-of-mine"' in files["splitter-s3-put.json"]
    assert not re.search("0a1b2c3d4e5f", "".join(files.values()))
    batch = json.loads(files["editor-sqs-batch.json"])
    message = RowMessage.model_validate_json(batch["Records"][0]["body"])
    assert message.base == "s3://input_bucket-of-mine/jobs/"
    assert message.run != uploaded().run


@pytest.mark.parametrize("key", ["jobs/a b+c.csv", "jobs/ä/ü%20.csv", "x.csv.gz"])
@pytest.mark.parametrize("version", ["v1", None])
def test_a_continuation_event_is_parsed_to_the_same_upload_and_run(
    key: str, version: str | None
) -> None:
    upload = CsvUploaded("in", key, version, "0A1B", 12, "abc")
    (parsed,) = uploads_in(continuation_event(upload))
    assert parsed == upload
    assert parsed.run == upload.run


def test_the_test_event_of_s3_contains_no_upload() -> None:
    assert list(uploads_in({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "in"})) == []


def test_a_record_of_another_service_is_an_error_that_names_the_field() -> None:
    with pytest.raises(ValidationError, match="s3"):
        list(uploads_in({"Records": [{"Sns": {}}]}))
