"""`make deploy`: one processor, one list of parameters, and a look at the account beforehand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from darkroom_local import deploy
from darkroom_local.deploy import Concurrency, check_wheels, chosen, parse_parameters, reservation
from darkroom_local.ministack import REGION
from darkroom_local.processes import LocalStackError

LARGE = Concurrency(quota=1000, unreserved=1000)
NEW = Concurrency(quota=10, unreserved=10)
ELF = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00"


@pytest.fixture
def cloudformation() -> Iterator[tuple[Any, Stubber]]:
    client = boto3.client("cloudformation", region_name=REGION)
    with Stubber(client) as stubber:
        yield client, stubber


def library(folder: Path, name: str, machine: int) -> None:
    path = folder / "DependenciesLayer" / "python" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(ELF + machine.to_bytes(2, "little") + bytes(100))


def test_parameters_come_from_one_list() -> None:
    assert parse_parameters(["WorkerProcesses=8", "NotificationEmail=a=b@c"]) == {
        "WorkerProcesses": "8",
        "NotificationEmail": "a=b@c",
    }
    with pytest.raises(LocalStackError, match="write NAME=VALUE"):
        parse_parameters(["arm64"])
    with pytest.raises(LocalStackError, match="Architecture is given as arm64 and as x86_64"):
        parse_parameters(["Architecture=arm64", "Architecture=x86_64"])


def test_an_upgrade_builds_for_the_processor_that_the_stack_has() -> None:
    deployed = {"Architecture": "arm64", "WorkerProcesses": "8"}
    assert chosen({}, deployed) == {"Architecture": "arm64"}
    assert chosen({"Architecture": "x86_64"}, deployed) == {"Architecture": "x86_64"}
    assert chosen({"RowsPerWorker": "2"}, {}) == {"RowsPerWorker": "2"}


def test_the_parameters_of_a_deployed_stack_are_looked_up(
    cloudformation: tuple[Any, Stubber],
) -> None:
    client, stubber = cloudformation
    stack = {"StackName": "darkroom", "StackStatus": "CREATE_COMPLETE", "CreationTime": 0}
    parameters = [{"ParameterKey": "Architecture", "ParameterValue": "arm64"}]
    response = {"Stacks": [stack | {"Parameters": parameters}]}
    stubber.add_response("describe_stacks", response, {"StackName": "darkroom"})
    assert deploy.deployed_parameters(client, "darkroom") == {"Architecture": "arm64"}


def test_a_first_deployment_has_no_parameters_yet(cloudformation: tuple[Any, Stubber]) -> None:
    client, stubber = cloudformation
    message = "Stack with id darkroom does not exist"
    stubber.add_client_error("describe_stacks", "ValidationError", message)
    assert deploy.deployed_parameters(client, "darkroom") == {}


def test_a_stack_that_cannot_be_looked_up_is_not_deployed_over(
    cloudformation: tuple[Any, Stubber],
) -> None:
    client, stubber = cloudformation
    stubber.add_client_error("describe_stacks", "ExpiredToken", "expired")
    with pytest.raises(LocalStackError, match="darkroom cannot be looked up"):
        deploy.deployed_parameters(client, "darkroom")


def test_the_quota_of_the_account_is_looked_up() -> None:
    client = boto3.client("lambda", region_name=REGION)
    with Stubber(client) as stubber:
        limit = {"ConcurrentExecutions": 10, "UnreservedConcurrentExecutions": 10}
        stubber.add_response("get_account_settings", {"AccountLimit": limit}, {})
        assert deploy.account_concurrency(client) == NEW
        stubber.add_client_error("get_account_settings", "AccessDeniedException", "no")
        assert deploy.account_concurrency(client) is None


@pytest.mark.parametrize(
    ("parameters", "deployed", "account"),
    [
        ({}, {}, LARGE),
        ({}, {}, None),  # unknown: AWS decides
        ({"WorkerProcesses": "900"}, {}, LARGE),
        ({"ReserveConcurrency": "false"}, {}, NEW),
        ({}, {"ReserveConcurrency": "false"}, NEW),
        # An upgrade: 50 of the account's concurrency are this stack's own already.
        ({}, {"WorkerProcesses": "50"}, Concurrency(quota=150, unreserved=100)),
    ],
)
def test_the_reservation_stays_as_it_is_where_aws_accepts_it(
    parameters: dict[str, str], deployed: dict[str, str], account: Concurrency | None
) -> None:
    assert reservation(parameters, deployed, account) == (None, "")


@pytest.mark.parametrize(
    ("parameters", "deployed", "account"),
    [
        ({}, {}, NEW),
        ({"WorkerProcesses": "901"}, {}, LARGE),
        ({"WorkerProcesses": "51"}, {"WorkerProcesses": "50"}, Concurrency(150, 100)),
    ],
)
def test_an_account_that_is_too_small_gets_no_reservation_and_a_sentence(
    parameters: dict[str, str], deployed: dict[str, str], account: Concurrency
) -> None:
    reserves, sentence = reservation(parameters, deployed, account)
    assert reserves == "false"
    assert f"may run {account.quota:,} functions at once" in sentence
    assert "ReserveConcurrency=false" in sentence
    assert "Service Quotas" in sentence


def test_a_reservation_that_was_asked_for_is_refused_with_the_reason() -> None:
    with pytest.raises(LocalStackError, match="AWS would reject a reservation of 4"):
        reservation({"ReserveConcurrency": "true"}, {}, NEW)


@pytest.mark.parametrize(("answer", "amount"), [("", "20"), ("0", "0"), ("$7.50", "7.5")])
def test_the_daily_spend_is_asked_for_with_a_default(answer: str, amount: str) -> None:
    assert deploy.daily_spend(answer) == amount


@pytest.mark.parametrize("answer", ["much", "-1", "inf", "nan"])
def test_an_answer_that_is_not_an_amount_is_an_error(answer: str) -> None:
    with pytest.raises(LocalStackError, match="not an amount in US dollars"):
        deploy.daily_spend(answer)


def test_wheels_for_another_processor_are_not_deployed(tmp_path: Path) -> None:
    library(tmp_path, "PIL/_imaging.cpython-313-x86_64-linux-gnu.so", 62)
    check_wheels("x86_64", tmp_path)
    with pytest.raises(LocalStackError, match=r"another processor than arm64: .*_imaging"):
        check_wheels("arm64", tmp_path)


def test_one_wrong_library_among_many_is_found(tmp_path: Path) -> None:
    library(tmp_path, "jiter/jiter.cpython-313-aarch64-linux-gnu.so", 183)
    library(tmp_path, "pillow.libs/libjpeg-1.so.62.4.0", 62)
    with pytest.raises(LocalStackError, match="libjpeg"):
        check_wheels("arm64", tmp_path)


def test_a_build_without_layers_is_not_deployed(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match="run `make build` first"):
        check_wheels("arm64", tmp_path)


def test_every_environment_of_samconfig_names_its_stack() -> None:
    assert deploy.configured_stack("default") == "darkroom"
    assert deploy.configured_stack("staging") == "darkroom-staging"
    assert deploy.configured_stack("other") == "darkroom"


def test_the_command_prints_errors_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy.main(["--only-build", "Architecture=sparc"]) == 1
    printed = capsys.readouterr().err
    assert printed == "make deploy: Architecture is x86_64 or arm64, not sparc\n"
