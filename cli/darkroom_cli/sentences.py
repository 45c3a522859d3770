"""Exceptions turned into one sentence for a person. Imports no SDK that is not loaded already."""

import re
import sys

from darkroom.errors import DarkroomError
from darkroom.formatting import describe_validation


class UsageMistake(DarkroomError):
    """The command line itself is wrong: exit code 2."""


class CommandFailed(DarkroomError):
    """The command could not do its work: exit code 1."""


_DENIED = {"AccessDenied", "AccessDeniedException", "AuthorizationError", "403", "Forbidden"}
_STALE = {"ExpiredToken", "ExpiredTokenException", "RequestExpired"}
_UNKNOWN_KEY = {
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthFailure",
}


def sentence_for(error: BaseException) -> str | None:
    """What to tell the user, or None for an error that is a bug of ours."""
    if isinstance(error, (UsageMistake, CommandFailed)):
        return str(error)
    if isinstance(error, DarkroomError):
        # An adapter's "does not answer" says less than what AWS said to it.
        said = _aws_sentence(error.__cause__) if error.__cause__ and _has_botocore() else None
        return said or _sentence(str(error))
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {(error.strerror or 'cannot be used').lower()}."
    if _has_botocore():
        sentence = _aws_sentence(error)
        if sentence:
            return sentence
    if "pydantic" in sys.modules:
        from pydantic import ValidationError  # noqa: PLC0415 - loaded already

        if isinstance(error, ValidationError):
            return f"{describe_validation(error)}."
    return None


def _has_botocore() -> bool:
    return "botocore" in sys.modules


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith((".", "?", "!")) else ".")


def _aws_sentence(error: BaseException) -> str | None:
    from botocore import exceptions as aws  # noqa: PLC0415 - loaded already

    said = str(error).rstrip(".: ")
    match error:
        case aws.NoCredentialsError() | aws.PartialCredentialsError():
            said = (
                "No AWS credentials found: set AWS_PROFILE, run `aws configure`, or add --local "
                "for the stack on this machine."
            )
        case aws.ProfileNotFound() | aws.TokenRetrievalError() | aws.SSOTokenLoadError():
            said += ": check AWS_PROFILE, or run `aws sso login`."
        case aws.NoRegionError():
            said = "No AWS region given: use --region, or set AWS_REGION."
        case aws.HTTPClientError():
            said += (
                ": check --endpoint-url and the network (for the stack on this machine: "
                "`darkroom local up`)."
            )
        case aws.ClientError():
            said = _client_error(error)
        case aws.BotoCoreError():
            said = f"AWS: {said}."
        case _:
            return None
    return said


def _client_error(error: BaseException) -> str:
    response = getattr(error, "response", {}).get("Error", {})
    code, message = response.get("Code", "unknown"), str(response.get("Message", "")).rstrip(".")
    operation = getattr(error, "operation_name", "the call")
    if code in _DENIED:
        named = re.search(r"perform: (\S+)(?: on resource: (\S+))?", message)
        action = named[1] if named else operation
        where = f" on {named[2]}" if named and named[2] else ""
        return f"Access denied: these credentials may not do {action}{where}; allow it in IAM."
    if code in _STALE:
        return "The AWS session has expired: sign in again (`aws sso login`, or fresh keys)."
    if code in _UNKNOWN_KEY:
        return "AWS does not know these credentials: check AWS_PROFILE or AWS_ACCESS_KEY_ID."
    return f"AWS refused {operation}: {message or 'no reason given'} ({code})."
