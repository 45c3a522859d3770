"""The secret source against a real Secrets Manager API."""

import json

import pytest

from darkroom.aws.secrets import SecretsManagerSource
from darkroom.errors import ConfigurationError
from tests.conftest import ClientFactory
from tests.fakes.services import FakeClock, FakeTelemetry


def _document(name: str) -> str:
    endpoint = {"name": name, "provider": "gemini", "api_keys": ["k"]}
    return json.dumps({"endpoints": [endpoint]})


def test_a_new_version_is_used_after_half_a_minute(aws_client: ClientFactory) -> None:
    client = aws_client("secretsmanager")
    arn = client.create_secret(Name="limits/endpoints", SecretString=_document("one"))["ARN"]
    clock, telemetry = FakeClock(), FakeTelemetry()
    source = SecretsManagerSource(client, arn, clock, telemetry)
    assert [e.name for e in source.endpoints().endpoints] == ["one"]
    client.put_secret_value(SecretId=arn, SecretString=_document("two"))
    clock.time += 31
    assert [e.name for e in source.endpoints().endpoints] == ["two"]
    client.put_secret_value(SecretId=arn, SecretString="not json")
    clock.time += 31
    assert [e.name for e in source.endpoints().endpoints] == ["two"]
    assert telemetry.logged("error") == ["secret_not_usable"]


def test_a_secret_that_does_not_exist_is_a_configuration_error(aws_client: ClientFactory) -> None:
    source = SecretsManagerSource(
        aws_client("secretsmanager"), "limits/none", FakeClock(), FakeTelemetry()
    )
    with pytest.raises(ConfigurationError, match="ResourceNotFoundException"):
        source.endpoints()
