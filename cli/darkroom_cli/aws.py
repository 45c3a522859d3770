"""The deployed stack on AWS: its buckets, dead-letter queue, secret and tables."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, NoRegionError

from darkroom.aws.batch_table import BatchTable
from darkroom.aws.endpoint_table import DynamoDBEndpointStates
from darkroom.aws.errors import MISSING_CODES, error_code
from darkroom.aws.ledger_table import LedgerTable
from darkroom.aws.sqs import message_group
from darkroom_cli.error_messages import CommandFailed
from darkroom_cli.options import DEFAULT_STACK, Target
from darkroom_cli.stack import (
    PARALLEL_TRANSFERS,
    DeadLetter,
    LostEvent,
    Outputs,
    StoredObject,
)

if TYPE_CHECKING:
    from darkroom_local.stack import StackInfo

_SINGLE_PUT_MAX_BYTES = 64 * 1024 * 1024  # larger files are uploaded in parts
_MAX_ERROR_CHARACTERS = 500
_ALIAS = "live"  # of the functions, in template.yaml
_RECEIVED_HIDDEN_SECONDS = 300  # also how long an interrupted run may leave messages hidden
_UNSUPPORTED_CODES = frozenset(
    {"InvalidAction", "UnsupportedOperation", "AWS.SimpleQueueService.UnsupportedOperation"}
)


def running_local_stack() -> "StackInfo":
    """The stack that `darkroom local up` started. Raises CommandFailed if there is none."""
    from darkroom_local import stack  # noqa: PLC0415 - only with --local

    info = stack.current()
    if info is None:
        raise CommandFailed("No stack runs on this machine: start it with `darkroom local up`.")
    return info


class AwsStack:
    """Implements Stack. Clients are created when first used, after one DescribeStacks."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._local = running_local_stack() if target.local else None
        self.name = target.stack
        if self._local and target.stack == DEFAULT_STACK:
            self.name = self._local.stack

    @cached_property
    def _session(self) -> boto3.Session:
        if self._local is not None:
            return self._local.session()
        session = boto3.Session(region_name=self._target.region)
        if not session.region_name:  # an empty variable would lead to the host s3..amazonaws.com
            raise NoRegionError
        return session

    def _client(self, service: str) -> Any:
        url = self._local.url if self._local else self._target.endpoint_url
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 5},
            connect_timeout=10,
            max_pool_connections=PARALLEL_TRANSFERS * 2,
            # Bucket names as host names do not resolve on a loopback address.
            s3={"addressing_style": "path"} if url else None,
        )
        return self._session.client(service, endpoint_url=url, config=config)  # type: ignore[call-overload]  # typed for literals only

    @cached_property
    def _description(self) -> Any:
        try:
            response = self._client("cloudformation").describe_stacks(StackName=self.name)
        except ClientError as error:
            if "does not exist" not in str(error):
                raise
            raise CommandFailed(
                f"There is no stack named {self.name} in {self._session.region_name}: deploy it "
                "(`make deploy`), choose another with --stack or --region, or use --local after "
                "`darkroom local up`."
            ) from error
        return response["Stacks"][0]

    @property
    def workers(self) -> int | None:
        parameters = {
            p["ParameterKey"]: p["ParameterValue"] for p in self._description.get("Parameters", [])
        }
        try:
            return int(parameters["WorkerProcesses"]) * int(parameters["RowsPerWorker"])
        except (KeyError, ValueError):
            return None

    @cached_property
    def outputs(self) -> Outputs:
        values = {o["OutputKey"]: o["OutputValue"] for o in self._description.get("Outputs", [])}
        names = Outputs.__dataclass_fields__
        if missing := sorted(set(names) - set(values)):
            raise CommandFailed(
                f"Stack {self.name} is {self._description['StackStatus']} and lacks the outputs "
                f"{', '.join(missing)}: is it a Darkroom stack, and did its deployment finish?"
            )
        return Outputs(**{name: values[name] for name in names})

    @cached_property
    def _dynamodb(self) -> Any:
        return self._client("dynamodb")

    @cached_property
    def endpoint_states(self) -> DynamoDBEndpointStates:
        return DynamoDBEndpointStates(self._dynamodb, self.outputs.EndpointsTableName)

    @cached_property
    def ledger(self) -> LedgerTable:
        return LedgerTable(self._dynamodb, self.outputs.LedgerTableName)

    @cached_property
    def batches(self) -> BatchTable:
        return BatchTable(self._dynamodb, self.outputs.LedgerTableName)

    @cached_property
    def _s3(self) -> Any:
        return self._client("s3")

    @cached_property
    def input_bucket(self) -> "S3Bucket":
        return S3Bucket(self._s3, self.outputs.InputBucketName)

    @cached_property
    def results_bucket(self) -> "S3Bucket":
        return S3Bucket(self._s3, self.outputs.ResultsBucketName)

    @cached_property
    def dead_letters(self) -> "SqsDeadLetterQueue":
        return SqsDeadLetterQueue(
            self._client("sqs"), self.outputs.DeadLetterQueueUrl, self.outputs.RowsQueueUrl
        )

    @cached_property
    def lost_events(self) -> "SqsLostEvents":
        names = {self.outputs.SplitterFunctionName, self.outputs.ReporterFunctionName}
        return SqsLostEvents(
            self._client("sqs"), self.outputs.LostEventsQueueUrl, self._client("lambda"), names
        )

    def queue_state(self, function: str) -> str:
        name = self._live(function)
        sources = self._client("lambda").list_event_source_mappings(FunctionName=name)
        states = [source["State"] for source in sources["EventSourceMappings"]]
        if states != ["Enabled"]:
            found = ", ".join(states) or "missing"
            raise CommandFailed(f"The event source of {name} is {found}: no row is taken.")
        return "its event source is enabled"

    def _live(self, function: str) -> str:
        """The name of a function with its alias."""
        names = {
            "splitter": self.outputs.SplitterFunctionName,
            "editor": self.outputs.EditorFunctionName,
            "submitter": self.outputs.SubmitterFunctionName,
            "collector": self.outputs.CollectorFunctionName,
            "reporter": self.outputs.ReporterFunctionName,
        }
        return f"{names[function]}:{_ALIAS}"

    def invoke(self, function: str, event: Mapping[str, object]) -> str:
        response = self._client("lambda").invoke(
            FunctionName=self._live(function), Payload=json.dumps(event)
        )
        payload = response["Payload"].read().decode(errors="replace")
        if "FunctionError" in response:
            raise CommandFailed(f"It failed: {payload[:_MAX_ERROR_CHARACTERS]}")
        return f"version {response.get('ExecutedVersion', 'unknown')} runs"

    def read_secret(self) -> str | None:
        secret = self._read_secret()
        return str(secret["SecretString"]) if secret else None

    def secret_written_at(self) -> float | None:
        secret = self._read_secret()
        return float(secret["CreatedDate"].timestamp()) if secret else None

    def _read_secret(self) -> Mapping[str, Any] | None:
        client = self._client("secretsmanager")
        try:
            found = client.get_secret_value(SecretId=self.outputs.EndpointsSecretArn)
        except client.exceptions.ResourceNotFoundException:
            return None
        return dict(found)

    def write_secret(self, text: str) -> None:
        client = self._client("secretsmanager")
        client.put_secret_value(SecretId=self.outputs.EndpointsSecretArn, SecretString=text)


class S3Bucket:
    """Implements Bucket. Thread-safe."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self.name = client, name

    def list(self, prefix: str, *, shallow: bool = False) -> Iterator[StoredObject]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.name, Prefix=prefix, **({"Delimiter": "/"} if shallow else {})
        )
        for page in pages:
            for entry in page.get("Contents", ()):
                yield StoredObject(
                    entry["Key"], entry["Size"], entry["ETag"].strip('"'), entry["LastModified"]
                )

    def metadata(self, key: str) -> Mapping[str, str] | None:
        try:
            return dict(self._client.head_object(Bucket=self.name, Key=key)["Metadata"])
        except ClientError as error:
            if error_code(error) in MISSING_CODES:
                return None
            raise

    def put_file(
        self, key: str, path: Path, content_type: str, metadata: Mapping[str, str]
    ) -> str | None:
        headers = {"ContentType": content_type, "Metadata": dict(metadata)}
        if path.stat().st_size > _SINGLE_PUT_MAX_BYTES:
            self._client.upload_file(str(path), self.name, key, ExtraArgs=headers)
            response = self._client.head_object(Bucket=self.name, Key=key)
        else:
            with path.open("rb") as body:
                response = self._client.put_object(Bucket=self.name, Key=key, Body=body, **headers)
        version = response.get("VersionId")
        return None if version is None else str(version)

    def fetch(self, key: str, target: Path) -> None:
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415 - only for downloads

        # The caller fetches objects in parallel: no further threads per object.
        config = TransferConfig(use_threads=False)
        with target.open("wb") as body:
            self._client.download_fileobj(self.name, key, body, Config=config)
            body.flush()
            os.fsync(body.fileno())


class SqsDeadLetterQueue:
    """Implements DeadLetterQueue."""

    def __init__(self, client: Any, dead_letter_url: str, rows_url: str) -> None:
        self._client, self._dead_letter_url, self._rows_url = client, dead_letter_url, rows_url

    def count(self) -> int:
        visible, hidden = "ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"
        counts = self._attributes(self._dead_letter_url, visible, hidden)
        return int(counts[visible]) + int(counts[hidden])

    def receive(self) -> Sequence[DeadLetter]:
        # A long poll queries all of SQS's hosts: no messages in it means no messages in the queue.
        response = self._client.receive_message(
            QueueUrl=self._dead_letter_url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=_RECEIVED_HIDDEN_SECONDS,
            WaitTimeSeconds=1,
            MessageAttributeNames=["All"],
        )
        return [
            DeadLetter(
                message["MessageId"],
                message["ReceiptHandle"],
                message["Body"],
                {
                    name: value["StringValue"]
                    for name, value in message.get("MessageAttributes", {}).items()
                    if "StringValue" in value
                },
            )
            for message in response.get("Messages", ())
        ]

    def requeue(self, letters: Sequence[DeadLetter]) -> Sequence[DeadLetter]:
        entries = [
            {
                "Id": str(i),
                "MessageBody": letter.body,
                **({"MessageGroupId": message_group(letter.job)} if letter.job else {}),
            }
            for i, letter in enumerate(letters)
        ]
        response = self._client.send_message_batch(QueueUrl=self._rows_url, Entries=entries)
        return [letters[int(entry["Id"])] for entry in response.get("Successful", ())]

    def delete(self, letters: Sequence[DeadLetter]) -> None:
        entries = [{"Id": str(i), "ReceiptHandle": m.receipt} for i, m in enumerate(letters)]
        if entries:
            self._client.delete_message_batch(QueueUrl=self._dead_letter_url, Entries=entries)

    def release(self, letters: Sequence[DeadLetter]) -> None:
        for start in range(0, len(letters), 10):
            entries = [
                {"Id": str(i), "ReceiptHandle": m.receipt, "VisibilityTimeout": 0}
                for i, m in enumerate(letters[start : start + 10])
            ]
            self._client.change_message_visibility_batch(
                QueueUrl=self._dead_letter_url, Entries=entries
            )

    def move_all(self) -> Iterator[int] | None:
        source = self._attributes(self._dead_letter_url, "QueueArn")["QueueArn"]
        target = self._attributes(self._rows_url, "QueueArn")["QueueArn"]
        try:
            self._client.start_message_move_task(SourceArn=source, DestinationArn=target)
        except ClientError as error:
            if error_code(error) in _UNSUPPORTED_CODES:
                return None
            raise
        return self._move_progress(source)

    def _move_progress(self, source: str) -> Iterator[int]:
        while True:
            response = self._client.list_message_move_tasks(SourceArn=source, MaxResults=1)
            task = response["Results"][0]
            yield int(task.get("ApproximateNumberOfMessagesMoved", 0))
            if task["Status"] == "FAILED":
                reason = task.get("FailureReason", "no reason given")
                raise CommandFailed(f"SQS could not move the messages: {reason}.")
            if task["Status"] != "RUNNING":
                return

    def _attributes(self, url: str, *names: str) -> Mapping[str, str]:
        response = self._client.get_queue_attributes(QueueUrl=url, AttributeNames=list(names))
        return dict(response["Attributes"])


class SqsLostEvents:
    """Implements LostEvents. Only `functions`, by name, are started again."""

    def __init__(self, sqs: Any, url: str, functions_client: Any, functions: Set[str]) -> None:
        self._sqs, self._url = sqs, url
        self._lambda, self._functions = functions_client, functions

    def receive(self) -> Sequence[LostEvent]:
        response = self._sqs.receive_message(
            QueueUrl=self._url,
            MaxNumberOfMessages=10,
            VisibilityTimeout=_RECEIVED_HIDDEN_SECONDS,
            WaitTimeSeconds=1,
        )
        return [
            lost_event(message["MessageId"], message["ReceiptHandle"], message["Body"])
            for message in response.get("Messages", ())
        ]

    def replay(self, event: LostEvent) -> None:
        if event.function not in self._functions:
            raise CommandFailed(
                f"The event {event.id} is for {event.function or 'no function'}, which is not one "
                "of this stack: look at its message in the queue."
            )
        self._lambda.invoke(
            FunctionName=f"{event.function}:{_ALIAS}",
            InvocationType="Event",
            Payload=json.dumps(event.payload),
        )

    def delete(self, event: LostEvent) -> None:
        self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=event.receipt)

    def release(self, events: Sequence[LostEvent]) -> None:
        for event in events:
            self._sqs.change_message_visibility(
                QueueUrl=self._url, ReceiptHandle=event.receipt, VisibilityTimeout=0
            )


def lost_event(message_id: str, receipt: str, body: str) -> LostEvent:
    """From the record that Lambda sends to a failure destination.

    Its format: "Invocation record" in
    https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
    """
    try:
        record = json.loads(body)
        context, payload = record["requestContext"], record["requestPayload"]
        arn = str(context["functionArn"]).split(":")
        error = (record.get("responsePayload") or {}).get("errorMessage") or context["condition"]
        return LostEvent(
            message_id, receipt, arn[6], dict(payload), str(record["timestamp"]), str(error)
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return LostEvent(message_id, receipt, "", {}, "", "not a record of a failed invocation")
