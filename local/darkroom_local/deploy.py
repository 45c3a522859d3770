"""`make deploy`: builds for the stack's processor, looks at the account, and deploys to AWS.

Parameters as NAME=VALUE; those not given keep their values. The processor is decided here, once: it
selects the wheels of the layer and the parameter Architecture, and the built files are checked.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import ClientError
from cfnlint.decode.cfn_yaml import load

from darkroom.aws.errors import error_code
from darkroom.formatting import plural
from darkroom_local import sam
from darkroom_local.processes import ROOT, LocalStackError

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_lambda import LambdaClient

DEFAULT_WORKERS = 4  # the template's default
DEFAULT_ARCHITECTURE = "x86_64"
SUGGESTED_DAILY_USD = 20
# "The machine" in the ELF header of a shared library (System V ABI, e_machine).
_MACHINES = {"x86_64": 62, "arm64": 183}
# Lambda keeps 100 of an account's concurrency unreserved, or all of a smaller quota.
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-concurrency.html
_UNRESERVED = 100


@dataclass(frozen=True, slots=True)
class Concurrency:
    """Of the account in this region, as Lambda's GetAccountSettings states it."""

    quota: int
    unreserved: int

    def allows(self, workers: int, reserved_now: int) -> bool:
        """Whether the editor may reserve `workers`; `reserved_now` is what it has reserved."""
        return self.unreserved + reserved_now - workers >= min(_UNRESERVED, self.quota)


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except LocalStackError as error:
        sys.stderr.write(f"make deploy: {error}\n")
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    given = parse_parameters([*options.parameters, *options.parameter_overrides])
    if options.only_build:
        _build(given.get("Architecture", DEFAULT_ARCHITECTURE))
        return
    stack = options.stack_name or configured_stack(options.config_env)
    session = boto3.Session(region_name=options.region)
    deployed = deployed_parameters(session.client("cloudformation"), stack)
    parameters = {"Architecture": DEFAULT_ARCHITECTURE} | chosen(given, deployed)
    parameters |= _reservation(parameters, deployed, account_concurrency(session.client("lambda")))
    if not deployed and "DailySpendAlarmUsd" not in parameters:
        parameters["DailySpendAlarmUsd"] = _ask_daily_spend()
    if not options.no_build:
        _build(parameters["Architecture"])
    check_wheels(parameters["Architecture"])
    overrides = [f"{name}={value}" for name, value in parameters.items()]
    region = ("--region", options.region) if options.region else ()
    template = Path(options.template_file or sam.BUILD / "template.yaml")
    config = ("--config-file", str(ROOT / "samconfig.toml"), "--config-env", options.config_env)
    _sam(
        "deploy",
        *config,
        "--stack-name",
        stack,
        *region,
        "--template-file",
        str(stamped(template, deployed | parameters)),
        "--parameter-overrides",
        *overrides,
    )
    sys.stdout.write(f"Next: `darkroom doctor --stack {stack}` checks what was deployed.\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make deploy", description=__doc__)
    parser.add_argument("parameters", nargs="*", metavar="NAME=VALUE")
    parser.add_argument("--parameter-overrides", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--stack-name", help="default: that of samconfig.toml")
    parser.add_argument("--region")
    parser.add_argument("--config-env", default="default", help="a table of samconfig.toml")
    parser.add_argument("--template-file", help="default: the last build")
    parser.add_argument("--no-build", action="store_true", help="deploy the last build")
    parser.add_argument("--only-build", action="store_true", help="build and check, deploy nothing")
    return parser


def parse_parameters(texts: Sequence[str]) -> dict[str, str]:
    """Raises LocalStackError for a text that is not NAME=VALUE, and for two values of a name."""
    parameters: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isalnum():
            raise LocalStackError(f"{text!r} is not a parameter: write NAME=VALUE")
        if parameters.setdefault(name, value) != value:
            raise LocalStackError(f"{name} is given as {parameters[name]} and as {value}")
    return parameters


def configured_stack(environment: str) -> str:
    """The stack's name in samconfig.toml: its own table, else the default one."""
    tables = tomllib.loads((ROOT / "samconfig.toml").read_text())
    for name in (environment, "default"):
        found = tables.get(name, {}).get("global", {}).get("parameters", {}).get("stack_name")
        if found:
            return str(found)
    raise LocalStackError("samconfig.toml names no stack: give --stack-name")


def deployed_parameters(client: "CloudFormationClient", stack: str) -> dict[str, str]:
    """The parameters of the stack as it is deployed; none if it does not exist."""
    try:
        (description,) = client.describe_stacks(StackName=stack)["Stacks"]
    except ClientError as error:
        if "does not exist" in str(error):
            return {}
        raise LocalStackError(f"the stack {stack} cannot be looked up: {error}") from error
    return {
        p.get("ParameterKey", ""): p.get("ParameterValue", "")
        for p in description.get("Parameters", ())
    }


def chosen(given: Mapping[str, str], deployed: Mapping[str, str]) -> dict[str, str]:
    """The parameters to send: what is given, and the processor that the stack has.

    SAM CLI keeps the values of all others.
    """
    kept = {name: deployed[name] for name in ("Architecture",) if name in deployed}
    return kept | dict(given)


def stamped(template: Path, parameters: Mapping[str, str]) -> Path:
    """A copy of the template, with a digest of its parameters' values in every environment.

    SAM publishes a version, and moves the alias to it, when the text of a function changes. A new
    value of a parameter leaves the text as it is: the functions would go on with the old one.
    https://github.com/aws/serverless-application-model/issues/3820
    """
    source = json.loads(json.dumps(load(str(template))))
    values = {
        name: str(parameters.get(name, parameter.get("Default", "")))
        for name, parameter in source["Parameters"].items()
    }
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
    source["Globals"]["Function"]["Environment"]["Variables"]["PARAMETERS_DIGEST"] = digest
    copy = template.with_name("deploy.json")  # beside the code, to which its paths are relative
    copy.write_text(json.dumps(source))
    return copy


def account_concurrency(client: "LambdaClient") -> Concurrency | None:
    """None if the caller may not look it up."""
    try:
        limit = client.get_account_settings()["AccountLimit"]
    except ClientError as error:
        sys.stdout.write(f"The account's concurrency cannot be looked up: {error_code(error)}.\n")
        return None
    return Concurrency(limit["ConcurrentExecutions"], limit["UnreservedConcurrentExecutions"])


def _reservation(
    parameters: Mapping[str, str], deployed: Mapping[str, str], account: Concurrency | None
) -> dict[str, str]:
    """ReserveConcurrency=false, with a sentence, where the account is too small to reserve."""
    reserves, sentence = reservation(parameters, deployed, account)
    if sentence:
        sys.stdout.write(sentence + "\n")
    return {} if reserves is None else {"ReserveConcurrency": reserves}


def reservation(
    parameters: Mapping[str, str], deployed: Mapping[str, str], account: Concurrency | None
) -> tuple[str | None, str]:
    """The value of ReserveConcurrency to send (None: as it is), and what to print about it."""
    now = dict(deployed) | dict(parameters)
    workers = int(now.get("WorkerProcesses", DEFAULT_WORKERS))
    wanted = now.get("ReserveConcurrency", "true") == "true"
    if account is None or not wanted:
        return None, ""
    reserved = deployed.get("ReserveConcurrency", "true") == "true" and bool(deployed)
    held = int(deployed.get("WorkerProcesses", DEFAULT_WORKERS)) if reserved else 0
    if account.allows(workers, held):
        return None, ""
    reason = (
        f"This account may run {plural(account.quota, 'function')} at once in this region, and "
        f"{account.unreserved} are not reserved: AWS would reject a reservation of {workers}."
    )
    if "ReserveConcurrency" in parameters:
        raise LocalStackError(f"{reason} Leave out ReserveConcurrency=true, or ask AWS for more.")
    return "false", (
        f"{reason} Deploying with ReserveConcurrency=false: the queue still starts at most "
        f'{workers} editors. For more, request "Concurrent executions" in Service Quotas.'
    )


def _ask_daily_spend() -> str:
    if not sys.stdin.isatty():
        sys.stdout.write(
            "No alarm on the providers' cost is set: add DailySpendAlarmUsd="
            f"{SUGGESTED_DAILY_USD} for one.\n"
        )
        return "0"
    answer = input(
        "Alarm when the providers cost more than how many US dollars in a day, 0 for no alarm? "
        f"[{SUGGESTED_DAILY_USD}] "
    ).strip()
    return daily_spend(answer)


def daily_spend(answer: str) -> str:
    try:
        amount = float(answer.removeprefix("$") or SUGGESTED_DAILY_USD)
    except ValueError:
        amount = -1
    if not 0 <= amount < float("inf"):
        raise LocalStackError(f"{answer!r} is not an amount in US dollars")
    return f"{amount:g}"


def check_wheels(architecture: str, build: Path = sam.BUILD) -> None:
    """Raises LocalStackError if a shared library of the build is for another processor."""
    libraries = [p for p in sorted(build.rglob("*.so*")) if p.is_file()]
    if not libraries:
        raise LocalStackError(f"{build} contains no built layer: run `make build` first")
    wrong = [path for path in libraries if _machine(path) != _MACHINES[architecture]]
    if wrong:
        raise LocalStackError(
            f"the layer was built for another processor than {architecture}: "
            f"{wrong[0].relative_to(build)} and {len(wrong) - 1} more. Run make deploy without "
            "--no-build, or give the Architecture of the build."
        )


def _machine(path: Path) -> int:
    with path.open("rb") as file:
        header = file.read(20)
    return int.from_bytes(header[18:20], "little") if header.startswith(b"\x7fELF") else 0


def _build(architecture: str) -> None:
    if architecture not in _MACHINES:
        raise LocalStackError(f"Architecture is {' or '.join(_MACHINES)}, not {architecture}")
    _sam("build", DARKROOM_ARCHITECTURE=architecture)
    check_wheels(architecture)
    sam.record_build(architecture)


def _sam(*arguments: str, **variables: str) -> None:
    """Run SAM CLI with the credentials and the terminal of this process."""
    environment = {**os.environ, **sam.toolchain(), **variables}
    done = subprocess.run(  # noqa: S603 - our own commands
        [sam.BIN / "sam", *arguments], cwd=ROOT, env=environment, check=False
    )
    if done.returncode:
        raise LocalStackError(f"sam {arguments[0]} failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
