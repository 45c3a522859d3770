"""Properties of the template that the design depends on and a careless edit would break."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from darkroom.batches.drafts import MAX_DISK_BYTES, MAX_FILE_BYTES
from darkroom.endpoints import EndpointsSecret
from darkroom_local.deploy import stamped
from darkroom_local.processes import ROOT
from tests.tables import KEYS
from tests.template.functions import FUNCTIONS
from tests.template.transform import transformed

USER_DATA = ("InputBucket", "ResultsBucket", "LedgerTable")
QUEUES = ("RowsQueue", "BatchRowsQueue", "DeadLetterQueue", "AsyncFailuresQueue")
BUCKETS = ("InputBucket", "ResultsBucket", "AccessLogsBucket")
STORES = (
    *("S3::Bucket", "DynamoDB::Table", "SQS::Queue", "SNS::Topic", "SecretsManager::Secret"),
    *("Logs::LogGroup", "Lambda::Function"),
)

FOURTEEN_DAYS = 14 * 24 * 3600


def of_type(resources: dict[str, Any], kind: str) -> dict[str, dict[str, Any]]:
    return {n: r["Properties"] for n, r in resources.items() if r["Type"] == kind}


@pytest.fixture(scope="module")
def editor(resources: dict[str, Any]) -> Any:
    return resources["EditorFunction"]["Properties"]


@pytest.fixture(scope="module")
def rows_source(resources: dict[str, Any]) -> dict[str, Any]:
    return source_of(resources, "RowsQueue")


def source_of(resources: dict[str, Any], queue: str) -> dict[str, Any]:
    sources = of_type(resources, "AWS::Lambda::EventSourceMapping").values()
    arn = {"Fn::GetAtt": [queue, "Arn"]}
    (found,) = [source for source in sources if source["EventSourceArn"] == arn]
    return found


def test_worker_processes_limits_all_concurrency(
    editor: dict[str, Any], rows_source: dict[str, Any]
) -> None:
    limit = {"Ref": "WorkerProcesses"}
    reserved = {"Fn::If": ["ReservesConcurrency", limit, {"Ref": "AWS::NoValue"}]}
    assert editor["ReservedConcurrentExecutions"] == reserved
    assert rows_source["ScalingConfig"]["MaximumConcurrency"] == limit


def test_a_batch_is_one_row_per_thread_and_one_bad_row_does_not_fail_it(
    rows_source: dict[str, Any],
) -> None:
    assert rows_source["BatchSize"] == {"Ref": "RowsPerWorker"}
    assert rows_source["MaximumBatchingWindowInSeconds"] == 0
    assert rows_source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


def test_no_message_is_redelivered_while_its_editor_runs(
    resources: dict[str, Any], editor: dict[str, Any]
) -> None:
    """AWS rejects less than the time-out ("Queue visibility timeout: … is less than Function
    timeout: …"), and recommends six times as much for functions that are throttled and keep no
    message hidden themselves. An editor that fails to start hides its rows for no longer.

    https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
    """
    queue = resources["RowsQueue"]["Properties"]
    assert queue["VisibilityTimeout"] == editor["Timeout"]
    assert queue["MessageRetentionPeriod"] == FOURTEEN_DAYS


def test_no_message_is_redelivered_while_its_submitter_runs(resources: dict[str, Any]) -> None:
    """Messages are hidden while a batch of them is gathered, too."""
    queue, source = (
        resources["BatchRowsQueue"]["Properties"],
        source_of(resources, "BatchRowsQueue"),
    )
    submitter = resources["SubmitterFunction"]["Properties"]
    window = source["MaximumBatchingWindowInSeconds"]
    assert queue["VisibilityTimeout"] >= submitter["Timeout"] + window
    assert queue["MessageRetentionPeriod"] == FOURTEEN_DAYS
    assert source["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
    assert 10 < source["BatchSize"] <= 10_000
    assert window >= 1, "AWS requires it of more than ten messages"


def test_files_of_requests_have_room_on_the_submitters_disk(resources: dict[str, Any]) -> None:
    megabytes = resources["SubmitterFunction"]["Properties"]["EphemeralStorage"]["Size"]
    assert megabytes * 1_000_000 > MAX_DISK_BYTES + MAX_FILE_BYTES


def test_a_collector_that_fails_is_repeated_by_its_schedule_alone(
    resources: dict[str, Any],
) -> None:
    configured = of_type(resources, "AWS::Lambda::EventInvokeConfig").values()
    (retries,) = [
        c["MaximumRetryAttempts"]
        for c in configured
        if c["FunctionName"]["Ref"] == "CollectorFunction"
    ]
    assert retries == 0
    assert resources["CollectorFunction"]["Properties"]["RecursiveLoop"] == "Allow"


@pytest.mark.parametrize("name", ["RowsQueue", "BatchRowsQueue"])
def test_deferring_never_dead_letters_a_row(resources: dict[str, Any], name: str) -> None:
    policy = resources[name]["Properties"]["RedrivePolicy"]
    assert policy["maxReceiveCount"] == 1000, "the maximum of SQS"
    assert policy["deadLetterTargetArn"] == {"Fn::GetAtt": ["DeadLetterQueue", "Arn"]}


def test_dead_letters_are_kept_as_long_as_sqs_can(resources: dict[str, Any]) -> None:
    for name in ("DeadLetterQueue", "AsyncFailuresQueue"):
        assert resources[name]["Properties"]["MessageRetentionPeriod"] == FOURTEEN_DAYS


def test_every_kind_of_upload_and_no_result_starts_a_job(resources: dict[str, Any]) -> None:
    configuration = resources["InputBucket"]["Properties"]["NotificationConfiguration"]
    notified = {
        (c["Event"], c["Filter"]["S3Key"]["Rules"][0]["Value"])
        for c in configuration["LambdaConfigurations"]
    }
    assert notified == {("s3:ObjectCreated:*", s) for s in (".csv", ".CSV", ".csv.gz")}
    assert "NotificationConfiguration" not in resources["ResultsBucket"]["Properties"]


def test_the_splitter_may_invoke_itself_for_a_long_csv(resources: dict[str, Any]) -> None:
    splitter = resources["SplitterFunction"]["Properties"]
    assert splitter["RecursiveLoop"] == "Allow"
    assert splitter["MemorySize"] == 1769, "a whole vCPU"


def test_the_reporter_may_invoke_itself_for_a_long_report(resources: dict[str, Any]) -> None:
    assert resources["ReporterFunction"]["Properties"]["RecursiveLoop"] == "Allow"


def test_every_event_goes_to_the_alias_that_a_rollback_moves(
    template: dict[str, Any], resources: dict[str, Any], rows_source: dict[str, Any]
) -> None:
    aliases = of_type(resources, "AWS::Lambda::Alias")
    assert {alias["FunctionName"]["Ref"] for alias in aliases.values()} == set(FUNCTIONS)
    assert {alias["Name"] for alias in aliases.values()} == {"live"}
    assert rows_source["FunctionName"]["Ref"] in aliases
    configuration = resources["InputBucket"]["Properties"]["NotificationConfiguration"]
    assert {c["Function"]["Ref"] for c in configuration["LambdaConfigurations"]} <= set(aliases)
    configured = of_type(resources, "AWS::Lambda::EventInvokeConfig").values()
    assert {c["Qualifier"] for c in configured} == {"live"}
    environment = resources["EditorFunction"]["Properties"]["Environment"]["Variables"]
    for name in ("splitter", "collector", "reporter"):
        started = environment[f"{name.upper()}_FUNCTION"]["Fn::Sub"]
        assert started == f"${{AWS::StackName}}-{name}:live"


def test_a_change_of_a_layer_alone_makes_a_new_version_of_every_function(tmp_path: Path) -> None:
    """Otherwise the alias would keep the old layers: releases change little else."""
    changed = tmp_path / "template.yaml"
    text = (ROOT / "template.yaml").read_text()
    changed.write_text(text.replace("ContentUri: layers/darkroom", "ContentUri: layers/other"))
    before, after = (
        set(of_type(transformed(file)["Resources"], "AWS::Lambda::Version"))
        for file in (ROOT / "template.yaml", changed)
    )
    assert len(before) == len(after) == len(FUNCTIONS)
    assert not before & after


def test_a_new_value_of_a_parameter_makes_a_new_version_of_every_function(tmp_path: Path) -> None:
    """SAM hashes the reference to a parameter, not its value: AllowedImageHosts had no effect."""
    template = tmp_path / "template.yaml"
    template.write_text((ROOT / "template.yaml").read_text())

    def versions(**parameters: str) -> set[str]:
        copy = stamped(template, parameters)
        return set(of_type(transformed(copy)["Resources"], "AWS::Lambda::Version"))

    assert len(versions()) == len(FUNCTIONS)
    assert not versions() & versions(AllowedImageHosts="images.example.com")
    assert versions() == versions(RowsPerWorker="10"), "its default: nothing changed"


def test_access_logs_may_be_delivered_before_a_bucket_sends_them(resources: dict[str, Any]) -> None:
    for name in ("InputBucket", "ResultsBucket"):
        assert "AccessLogsBucketPolicy" in resources[name]["DependsOn"]


def test_the_ledger_cannot_be_deleted_by_mistake(resources: dict[str, Any]) -> None:
    assert resources["LedgerTable"]["Properties"]["DeletionProtectionEnabled"] is True
    # With protection, a rollback of the stack's creation could not delete it.
    assert resources["LedgerTable"]["DeletionPolicy"] == "Retain"


@pytest.mark.parametrize("name", USER_DATA)
def test_data_of_a_deleted_stack_can_be_attached_by_its_suffix(
    resources: dict[str, Any], name: str
) -> None:
    properties = resources[name]["Properties"]
    text, values = (properties.get("BucketName") or properties["TableName"])["Fn::Sub"]
    assert text.startswith("${AWS::StackName}-")
    assert text.endswith("-${Suffix}")
    given, from_stack_id = values["Suffix"]["Fn::If"][1:]
    assert given == {"Ref": "DataSuffix"}
    assert "AWS::StackId" in str(from_stack_id)


def test_nothing_in_the_template_is_there_for_an_emulator() -> None:
    text = (ROOT / "template.yaml").read_text()
    for trace in ("MiniStack", "127.0.0", "000000000000", "Batch,", "MessageBatch", "checkov"):
        assert trace not in text


def test_no_asynchronous_event_is_lost(resources: dict[str, Any]) -> None:
    configured = of_type(resources, "AWS::Lambda::EventInvokeConfig").values()
    where = {
        c["FunctionName"]["Ref"]: c["DestinationConfig"]["OnFailure"]["Destination"]
        for c in configured
        if c["FunctionName"]["Ref"] != "CollectorFunction"
    }
    lost = {"Fn::GetAtt": ["AsyncFailuresQueue", "Arn"]}
    assert where == {"SplitterFunction": lost, "ReporterFunction": lost}


@pytest.mark.parametrize("name", USER_DATA)
def test_a_users_data_outlives_the_stack(resources: dict[str, Any], name: str) -> None:
    assert resources[name]["DeletionPolicy"] in ("Retain", "RetainExceptOnCreate")
    assert resources[name]["UpdateReplacePolicy"] == "Retain"


@pytest.mark.parametrize("name", BUCKETS)
def test_buckets_are_private_encrypted_and_tls_only(resources: dict[str, Any], name: str) -> None:
    bucket = resources[name]["Properties"]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert bucket["OwnershipControls"]["Rules"] == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    policies = of_type(resources, "AWS::S3::BucketPolicy").values()
    (policy,) = [p for p in policies if p["Bucket"] == {"Ref": name}]
    denied = policy["PolicyDocument"]["Statement"][0]
    assert (denied["Effect"], denied["Principal"], denied["Action"]) == ("Deny", "*", "s3:*")
    assert denied["Condition"]["Bool"] == {"aws:SecureTransport": "false"}
    assert len(denied["Resource"]) == 2


@pytest.mark.parametrize("name", ["InputBucket", "ResultsBucket"])
def test_buckets_keep_versions_and_clean_up(resources: dict[str, Any], name: str) -> None:
    bucket = resources[name]["Properties"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    rules = {r["Id"]: r for r in bucket["LifecycleConfiguration"]["Rules"] if "Id" in r}
    assert "NoncurrentVersionExpiration" in rules["old-versions"]
    assert "AbortIncompleteMultipartUpload" in rules["unfinished-uploads"]
    assert not any("ExpirationInDays" in rule for rule in rules.values()), "results are kept"


@pytest.mark.parametrize("name", QUEUES)
def test_queues_are_encrypted(resources: dict[str, Any], name: str) -> None:
    queue = resources[name]["Properties"]
    assert queue["SqsManagedSseEnabled"] == {"Fn::If": ["HasKey", {"Ref": "AWS::NoValue"}, True]}


def test_the_users_own_key_encrypts_everything_at_rest(resources: dict[str, Any]) -> None:
    lacking = [
        name
        for kind in STORES
        for name, properties in of_type(resources, f"AWS::{kind}").items()
        if "KmsKeyArn" not in str(properties)
    ]
    assert lacking == ["AccessLogsBucket"], "S3 delivers access logs under its own key only"


def test_tables_have_the_keys_of_the_ledger_and_can_be_restored(resources: dict[str, Any]) -> None:
    tables = of_type(resources, "AWS::DynamoDB::Table")
    assert {name.removesuffix("Table").lower() for name in tables} == KEYS.keys()
    for name, table in tables.items():
        keys = [(k["AttributeName"], k["KeyType"]) for k in table["KeySchema"]]
        assert keys == list(KEYS[name.removesuffix("Table").lower()].items())
        assert table["BillingMode"] == "PAY_PER_REQUEST"
        assert table["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"] is True


def test_the_placeholder_in_the_secret_is_not_valid(resources: dict[str, Any]) -> None:
    """A first job must report what to configure, not call endpoints that do not exist."""
    secret = resources["EndpointsSecret"]["Properties"]["SecretString"]
    with pytest.raises(ValidationError):
        EndpointsSecret.model_validate_json(secret)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_logs_of_every_function_expire(resources: dict[str, Any], name: str) -> None:
    group = resources[name]["Properties"]["LoggingConfig"]["LogGroup"]["Ref"]
    logs = resources[group]["Properties"]
    assert logs["RetentionInDays"] == {"Ref": "LogRetentionDays"}
    assert logs["LogGroupName"]["Fn::Sub"].endswith(name.removesuffix("Function").lower())
