"""Errors are one sentence on standard error and an exit code, never a traceback."""

import errno
import subprocess
import sys

import pytest
import typer
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ProfileNotFound,
)
from typer.testing import CliRunner

from darkroom.errors import ServiceUnavailable
from darkroom_cli.options import Target
from darkroom_cli.session import Session, with_session
from darkroom_local import stack
from tests.fakes.command import CliHarness


def client_error(code: str, message: str, operation: str = "DescribeStacks") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


def ledger_error(error: Exception) -> ServiceUnavailable:
    outer = ServiceUnavailable("the ledger does not answer")
    outer.__cause__ = error
    return outer


DENIED = client_error(
    "AccessDeniedException",
    "User: arn:me is not authorized to perform: dynamodb:GetItem on resource: arn:t",
    "GetItem",
)
SECRET = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:endpoints-AbCdEf"
SECRET_DENIED = client_error(
    "AccessDeniedException",
    "User: arn:me is not authorized to perform: secretsmanager:GetSecretValue on resource: "
    f"{SECRET} because no policy allows it",
    "GetSecretValue",
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NoCredentialsError(), "No AWS credentials found"),
        (NoRegionError(), "--region"),
        (ProfileNotFound(profile="work"), "(work) could not be found: check AWS_PROFILE"),
        (EndpointConnectionError(endpoint_url="http://x:1"), "http://x:1"),
        (DENIED, "may not do dynamodb:GetItem on arn:t"),
        (SECRET_DENIED, f"may not do secretsmanager:GetSecretValue on {SECRET}; allow"),
        (ledger_error(DENIED), "may not do dynamodb:GetItem on arn:t"),
        (client_error("AccessDenied", "Access Denied", "PutObject"), "may not do PutObject"),
        (client_error("ExpiredToken", "expired"), "has expired"),
        (client_error("UnrecognizedClientException", "no"), "does not recognise these credentials"),
        (client_error("Weird", "The moon is full."), "The moon is full (Weird)."),
        (ServiceUnavailable("the ledger does not answer"), "The ledger does not answer."),
        (ZeroDivisionError("x"), "bug in darkroom"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_error_is_one_line_on_stderr(cli: CliHarness, error: Exception, message: str) -> None:
    cli.connection_error = error
    line = cli.error("status", "jobs/p")
    assert message in line
    assert line.startswith("Error: ")


@pytest.mark.parametrize("error", [NoRegionError(), NoCredentialsError()])
def test_a_stack_that_runs_on_this_machine_is_offered(
    cli: CliHarness, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    cli.connection_error = error
    monkeypatch.setattr(stack, "current", lambda: None)
    assert "add --local for the stack on this machine (`darkroom local up`)." in cli.error("list")
    monkeypatch.setattr(stack, "current", object)
    assert "add --local for the stack that runs on this machine." in cli.error("list")


@pytest.mark.parametrize(
    ("arguments", "environment", "target"),
    [
        ([], {}, Target()),
        (["--stack", "s", "--region", "eu-west-1"], {}, Target("s", region="eu-west-1")),
        ([], {"DARKROOM_STACK": "s", "DARKROOM_LOCAL": "1"}, Target("s", local=True)),
        (["--local"], {}, Target(local=True)),
        ([], {"AWS_ENDPOINT_URL": "http://x"}, Target(endpoint_url="http://x")),
        (
            ["--endpoint-url", "http://y"],
            {"AWS_REGION": "r"},
            Target(endpoint_url="http://y", region="r"),
        ),
    ],
)
def test_options_and_environment_choose_the_stack(
    cli: CliHarness,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    environment: dict[str, str],
    target: Target,
) -> None:
    names = ("DARKROOM_STACK", "DARKROOM_LOCAL", "AWS_ENDPOINT_URL", "AWS_REGION")
    for name in (*names, "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cli.succeed("list", *arguments)
    assert cli.targets == [target]


def test_a_missing_csv_is_a_usage_error(cli: CliHarness) -> None:
    result = cli.run("submit", cli.folder / "none.csv")
    assert result.exit_code == 2
    assert "none.csv" in result.stderr


def test_help_loads_neither_boto3_nor_pydantic() -> None:
    script = (
        "import sys\n"
        "from darkroom_cli.main import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'boto3', 'botocore', 'pydantic', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert "submit" in done.stdout
    assert done.stderr.strip() == "[]"


def test_a_closed_pipe_ends_the_command_quietly() -> None:
    piped = typer.Typer()

    def closed(_session: Session) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    piped.command()(with_session(closed))
    result = CliRunner().invoke(piped, [])
    assert result.exit_code == 1
    assert result.stderr == ""
