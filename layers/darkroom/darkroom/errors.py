"""One error tree, named for what the caller does next."""

from enum import StrEnum


class Reason(StrEnum):
    """Why a row did not succeed; written to the manifest's `reason` column as it stands."""

    REFUSED = "refused"
    NO_IMAGE = "no_image"
    BAD_INPUT = "bad_input"
    BAD_IMAGE = "bad_image"
    BAD_REQUEST = "bad_request"
    BUDGET = "budget"
    STOPPED = "stopped"
    OUTCOME_UNKNOWN = "outcome_unknown"
    # The ones below end a row only as `dead`, once its attempts are spent.
    RATE_LIMITED = "rate_limited"
    QUOTA_SPENT = "quota_spent"
    KEY_REJECTED = "key_rejected"
    UNAVAILABLE = "unavailable"
    IMAGE_UNAVAILABLE = "image_unavailable"
    WORKER_LOST = "worker_lost"
    NO_ENDPOINT = "no_endpoint"
    UNPARSEABLE = "unparseable"


class DarkroomError(Exception):
    """Root of all errors that Darkroom raises itself. `str()` is one sentence for a person."""


class JobRejected(DarkroomError):
    """The file or its options cannot be used: the job fails with this sentence."""


class ConfigurationError(DarkroomError):
    """The secret or the environment is wrong: says which field and what to do."""


class RowRejected(DarkroomError):
    """No retry can help this row: it ends as `failed` with `reason` and the sentence as detail."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class RetryRow(DarkroomError):
    """This attempt failed, another may not: costs an attempt; `dead` when they are spent."""

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        delay_seconds: float = 0.0,
        provider: str | None = None,
        endpoint: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.delay_seconds = delay_seconds
        self.provider = provider
        self.endpoint = endpoint


class DeferRow(DarkroomError):
    """Nothing was tried: the row comes back in `delay_seconds` at no cost in attempts."""

    def __init__(self, detail: str, *, delay_seconds: float) -> None:
        super().__init__(detail)
        self.detail = detail
        self.delay_seconds = delay_seconds


class ServiceUnavailable(DarkroomError):
    """An AWS service failed even after the SDK's own retries: come back later."""
