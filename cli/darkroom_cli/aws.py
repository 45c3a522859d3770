"""A deployed stack on AWS, or on an endpoint that speaks its API."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from darkroom.ports import RowLedger, RunLedger
from darkroom_cli.buckets import S3Bucket
from darkroom_cli.letters import SqsDeadLetters
from darkroom_cli.local import running, stack_name
from darkroom_cli.ports import EndpointStates, Outputs
from darkroom_cli.sentences import CommandFailed
from darkroom_cli.session import Target

if TYPE_CHECKING:
    from darkroom.aws.ledger_table import LedgerTable

PARALLEL = 16  # uploads and downloads at a time


class AwsStack:
    """Satisfies ports.Stack. One DescribeStacks per process, then only what a verb asks for."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._local = running() if target.local else None
        self.name = stack_name(target.stack, self._local) if self._local else target.stack

    @cached_property
    def _session(self) -> boto3.Session:
        info = self._local
        if info is None:
            return boto3.Session(region_name=self._target.region)
        return boto3.Session(info.access_key, info.secret_key, region_name=info.region)

    def _client(self, service: str) -> Any:
        url = self._local.url if self._local else self._target.endpoint_url
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 5},
            connect_timeout=10,
            max_pool_connections=PARALLEL * 2,
            # Bucket names as host names do not resolve on a loopback address.
            s3={"addressing_style": "path"} if url else None,
        )
        return self._session.client(service, endpoint_url=url, config=config)  # type: ignore[call-overload]

    @cached_property
    def _described(self) -> Any:
        try:
            answer = self._client("cloudformation").describe_stacks(StackName=self.name)
        except ClientError as error:
            if "does not exist" in str(error):
                raise CommandFailed(self._not_found()) from error
            raise
        return answer["Stacks"][0]

    @property
    def workers(self) -> int | None:
        given = {
            p["ParameterKey"]: p["ParameterValue"] for p in self._described.get("Parameters", [])
        }
        try:
            return int(given["WorkerProcesses"]) * int(given["RowsPerWorker"])
        except (KeyError, ValueError):
            return None

    @cached_property
    def outputs(self) -> Outputs:
        found = self._described
        values = {o["OutputKey"]: o["OutputValue"] for o in found.get("Outputs", [])}
        wanted = Outputs.__dataclass_fields__
        missing = sorted(set(wanted) - set(values))
        if missing:
            raise CommandFailed(
                f"Stack {self.name} is {found['StackStatus']} and lacks the outputs "
                f"{', '.join(missing)}: is it a Darkroom stack, and did its deployment finish?"
            )
        return Outputs(**{name: values[name] for name in wanted})

    def _not_found(self) -> str:
        region = self._session.region_name
        return (
            f"There is no stack named {self.name} in {region}: deploy it (`make deploy`), "
            "choose another with --stack or --region, or use --local after `darkroom local up`."
        )

    @cached_property
    def _dynamodb(self) -> Any:
        return self._client("dynamodb")

    @cached_property
    def endpoint_states(self) -> EndpointStates:
        from darkroom.aws.endpoint_table import DynamoDBEndpointStates  # noqa: PLC0415

        return DynamoDBEndpointStates(self._dynamodb, self.outputs.EndpointsTableName)

    @cached_property
    def _ledger(self) -> "LedgerTable":
        from darkroom.aws.ledger_table import LedgerTable  # noqa: PLC0415

        return LedgerTable(self._dynamodb, self.outputs.LedgerTableName)

    @property
    def runs(self) -> RunLedger:
        return self._ledger

    @property
    def rows(self) -> RowLedger:
        return self._ledger

    @cached_property
    def _s3(self) -> Any:
        return self._client("s3")

    @cached_property
    def inputs(self) -> S3Bucket:
        return S3Bucket(self._s3, self.outputs.InputBucketName)

    @cached_property
    def results(self) -> S3Bucket:
        return S3Bucket(self._s3, self.outputs.ResultsBucketName)

    @cached_property
    def secret(self) -> "AwsSecret":
        return AwsSecret(self._client("secretsmanager"), self.outputs.EndpointsSecretArn)

    @cached_property
    def dead_letters(self) -> SqsDeadLetters:
        return SqsDeadLetters(
            self._client("sqs"), self.outputs.DeadLetterQueueUrl, self.outputs.RowsQueueUrl
        )


class AwsSecret:
    """ports.SecretStore on Secrets Manager."""

    def __init__(self, client: Any, arn: str) -> None:
        self._client, self._arn = client, arn

    def read(self) -> str | None:
        try:
            answer = self._client.get_secret_value(SecretId=self._arn)
        except self._client.exceptions.ResourceNotFoundException:
            return None
        return str(answer["SecretString"])

    def write(self, text: str) -> None:
        self._client.put_secret_value(SecretId=self._arn, SecretString=text)
