"""AWS error codes, and which errors are transient."""

from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004  # botocore's own, the root of its connection errors
    HTTPClientError,
    ResponseStreamingError,
)

from darkroom.errors import ServiceUnavailable

TRANSACTION_CONFLICT = "TransactionConflictException"  # of a single write with a transaction

# Codes that AWS documents as transient whatever their HTTP status; every 5xx is transient too.
_TRANSIENT_CODES = frozenset(
    {
        "InternalError",
        "InternalFailure",
        "InternalServerError",
        "KmsThrottled",
        "LimitExceededException",
        "OperationAborted",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        TRANSACTION_CONFLICT,
        "TransactionInProgressException",
    }
)

CONDITION_FAILED = "ConditionalCheckFailedException"
TRANSACTION_CANCELLED = "TransactionCanceledException"
# Reasons within a cancelled transaction: of the write whose condition failed, and of writes that
# may succeed when the transaction is repeated.
CONDITION_FAILED_REASON = "ConditionalCheckFailed"
TRANSIENT_REASONS = frozenset(
    {"None", "ProvisionedThroughputExceeded", "ThrottlingError", "TransactionConflict"}
)

# S3 answers a HEAD request for a missing object with the bare HTTP status.
MISSING_CODES = frozenset({"404", "NoSuchKey", "NotFound"})
# Nothing to read: the object, its version or its bucket is missing, or the version is a deletion.
GONE_CODES = MISSING_CODES | {"NoSuchVersion", "NoSuchBucket", "MethodNotAllowed", "405"}
DENIED_CODES = frozenset(
    {
        "403",
        "AccessDenied",
        "AccessDeniedException",
        "AllAccessDisabled",
        "AuthorizationError",
        "Forbidden",
    }
)
EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
UNKNOWN_CREDENTIAL_CODES = frozenset(
    {
        "AuthFailure",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def is_transient(error: Exception) -> bool:
    """True when the same request may well succeed in a while."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or error_code(error) in _TRANSIENT_CODES  # noqa: PLR2004  # HTTP's server errors
    return isinstance(error, (ConnectionError, HTTPClientError, ResponseStreamingError))


@contextmanager
def translate_errors(service: str) -> Iterator[None]:
    """Raises ServiceUnavailable for transient errors; other errors propagate unchanged."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        if not is_transient(error):
            raise
        kind = error_code(error) if isinstance(error, ClientError) else type(error).__name__
        raise ServiceUnavailable(f"{service} is unavailable at the moment ({kind})") from error
