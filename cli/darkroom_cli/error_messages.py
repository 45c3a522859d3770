"""Turns exceptions into one sentence for the user. Imports no SDK that is not loaded already."""

import re
import sys
from typing import TYPE_CHECKING

from darkroom.errors import DarkroomError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError


class UsageMistake(DarkroomError):
    """The command line itself is wrong: exit code 2."""


class CommandFailed(DarkroomError):
    """The command could not do its work: exit code 1."""


def describe_error(error: Exception) -> str:
    """The sentence to print. An error that no case covers is reported as a bug."""
    return _describe_known(error) or (
        f"Unexpected {type(error).__name__}: this is a bug in darkroom; "
        "DARKROOM_DEBUG=1 shows where."
    )


def _describe_known(error: Exception) -> str | None:
    if isinstance(error, (UsageMistake, CommandFailed)):
        return str(error)
    if isinstance(error, DarkroomError):
        # AWS's own message is more precise than the adapter's "the ledger does not answer".
        return _describe_aws(error.__cause__) or as_sentence(str(error))
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}."
    return _describe_aws(error)


def as_sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")


def _describe_aws(error: BaseException | None) -> str | None:
    if error is None or "botocore" not in sys.modules:
        return None
    from botocore import exceptions as aws  # noqa: PLC0415 - loaded already

    text = str(error).rstrip(".: ")
    match error:
        case aws.NoCredentialsError() | aws.PartialCredentialsError():
            text = (
                "No AWS credentials found: set AWS_PROFILE, run `aws configure`, or add --local "
                f"for the stack {_local_stack()}."
            )
        case aws.ProfileNotFound() | aws.TokenRetrievalError() | aws.SSOTokenLoadError():
            text += ": check AWS_PROFILE, or run `aws sso login`."
        case aws.NoRegionError():
            text = (
                "No AWS region given: use --region, or set AWS_REGION; or add --local for the "
                f"stack {_local_stack()}."
            )
        case aws.HTTPClientError():
            text += (
                ": check --endpoint-url and the network (for the stack on this machine: "
                "`darkroom local up`)."
            )
        case aws.ClientError():
            text = _describe_client_error(error)
        case aws.BotoCoreError():
            text = f"AWS: {text}."
        case _:
            return None
    return text


def _local_stack() -> str:
    from darkroom_local import stack  # noqa: PLC0415 - only for this error

    runs = stack.current() is not None
    return "that runs on this machine" if runs else "on this machine (`darkroom local up`)"


def _describe_client_error(error: "ClientError") -> str:
    from darkroom.aws import errors as codes  # noqa: PLC0415 - imports botocore

    code = codes.error_code(error) or "unknown"
    message = str(error.response.get("Error", {}).get("Message", "")).rstrip(".")
    if code in codes.DENIED_CODES:
        found = re.search(r"perform: (\S+)(?: on resource: (\S+))?", message)
        action = found[1] if found else error.operation_name
        where = f" on {found[2]}" if found and found[2] else ""
        return f"Access denied: these credentials may not do {action}{where}; allow it in IAM."
    if code in codes.EXPIRED_CODES:
        return "The AWS session has expired: sign in again (`aws sso login`, or new keys)."
    if code in codes.UNKNOWN_CREDENTIAL_CODES:
        return "AWS does not recognise these credentials: check AWS_PROFILE or AWS_ACCESS_KEY_ID."
    return f"AWS refused {error.operation_name}: {message or 'no reason given'} ({code})."
