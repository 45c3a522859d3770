"""The names that users and tools depend on: parameters, outputs, environment."""

from typing import Any

from darkroom.settings import Settings
from tests.template.functions import FUNCTIONS

PARAMETERS = {
    "WorkerProcesses": 4,
    "ReserveConcurrency": "true",
    "RowsPerWorker": 10,
    "AllowedImageHosts": "",
    "TrustedImageHosts": "",
    "OnUnknownOutcome": "retry",
    "ConfineRowsToPrefix": "false",
    "FallbackAlarmPercent": 30,
    "DailySpendAlarmUsd": 0,
    "NotificationEmail": "",
    "KmsKeyArn": "",
    "LogRetentionDays": 30,
    "TracingMode": "PassThrough",
    "Architecture": "x86_64",
    "DataSuffix": "",
}
OUTPUTS = {
    "InputBucketName",
    "ResultsBucketName",
    "EndpointsSecretArn",
    "RowsQueueUrl",
    "BatchRowsQueueUrl",
    "DeadLetterQueueUrl",
    "LostEventsQueueUrl",
    "LedgerTableName",
    "EndpointsTableName",
    "SplitterFunctionName",
    "EditorFunctionName",
    "SubmitterFunctionName",
    "CollectorFunctionName",
    "ReporterFunctionName",
    "JobsTopicArn",
    "AlarmsTopicArn",
    "DashboardName",
}


def test_parameters_have_the_documented_names_defaults_and_a_description(
    template: dict[str, Any],
) -> None:
    for name, parameter in template["Parameters"].items():
        assert "Default" in parameter, f"{name}: `sam deploy` would need it"
        assert len(parameter.get("Description", "")) > 20, name
    found = {name: p["Default"] for name, p in template["Parameters"].items()}
    assert found | PARAMETERS == found


def test_limits_of_the_worker_parameters(template: dict[str, Any]) -> None:
    workers, rows = (template["Parameters"][n] for n in ("WorkerProcesses", "RowsPerWorker"))
    assert workers["MinValue"] == 2, "MaximumConcurrency must be at least 2"
    assert (rows["MinValue"], rows["MaxValue"]) == (1, 10)


def test_every_output_of_the_contract_exists(template: dict[str, Any]) -> None:
    assert template["Outputs"].keys() >= OUTPUTS


def test_the_environment_of_every_function_matches_the_settings(resources: dict[str, Any]) -> None:
    environments = [resources[f]["Properties"]["Environment"]["Variables"] for f in FUNCTIONS]
    assert environments == [environments[0]] * len(FUNCTIONS), "events/env.json is for all of them"
    # AWS_ENDPOINT_URL is there for sam local invoke, and has no value in a deployment.
    assert environments[0]["AWS_ENDPOINT_URL"] == {"Ref": "AWS::NoValue"}
    others = ("POWERTOOLS_", "AWS_", "MALLOC_")
    ours = {name for name in environments[0] if not name.startswith(others)}
    # Lambda itself sets those that begin with AWS_LAMBDA_.
    wanted = {name.upper() for name in Settings.model_fields if not name.startswith("aws_lambda_")}
    assert ours == wanted


def settings(**values: str) -> Settings:
    required = {n: "x" for n, field in Settings.model_fields.items() if field.is_required()}
    return Settings.model_validate(
        required | {"input_bucket": "in", "results_bucket": "out"} | values
    )


def test_rows_can_be_confined_to_the_folder_of_their_csv() -> None:
    assert settings(confine_rows_to_prefix="false").confined_buckets == ()
    assert settings(confine_rows_to_prefix="true").confined_buckets == ("in", "out")


def test_buckets_of_further_images_are_known_by_their_arns() -> None:
    arns = "arn:aws:s3:::photos/in/*,arn:aws-cn:s3:::more-photos/*"
    assert settings(image_object_arns="").image_buckets == ("in", "out")
    expected = ("in", "out", "photos", "more-photos")
    assert settings(image_object_arns=arns).image_buckets == expected
