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


class Ineligible(DarkroomError):
    """An endpoint's model cannot honour the row (a mask, say); another endpoint's may."""


class LeaseLost(DarkroomError):
    """Another worker owns the row now: stop without calling and without settling."""


class ServiceUnavailable(DarkroomError):
    """An AWS service failed even after the SDK's own retries: come back later."""


# What to do next about a row that did not succeed, one sentence per reason.


REMEDIATIONS: dict[str, str] = {
    Reason.REFUSED: (
        "The provider's safety rules refused this picture or instruction. Reword the instruction "
        "or change the picture, then upload the CSV again: only changed rows are done."
    ),
    Reason.NO_IMAGE: (
        "The model answered without a picture. Ask for an edit more plainly, then upload again."
    ),
    Reason.BAD_INPUT: "Correct the row in the CSV as the detail says, then upload it again.",
    Reason.BAD_IMAGE: (
        "The picture is missing, forbidden, too large or not a picture. Put a good one in its "
        "place, then upload again with retry-failed=true."
    ),
    Reason.BAD_REQUEST: (
        "The provider does not accept these settings. Change the row's size, model or pictures as "
        "the detail says, then upload again."
    ),
    Reason.BUDGET: "Upload the CSV again with a larger budget-usd: the job goes on where it ended.",
    Reason.STOPPED: "The job was stopped. Upload the CSV again to go on where it ended.",
    Reason.OUTCOME_UNKNOWN: (
        "A worker was lost while the provider worked on this row, which may have been billed. "
        "Upload again with retry-failed=true to try it once more."
    ),
    Reason.RATE_LIMITED: (
        "The provider kept answering that the pace is too high. Lower requests_per_minute in the "
        "endpoints secret to what your account allows, then redrive."
    ),
    Reason.QUOTA_SPENT: "Top up the provider's account or add an endpoint, then redrive.",
    Reason.KEY_REJECTED: "Put a valid API key into the endpoints secret, then redrive.",
    Reason.UNAVAILABLE: "The provider was down or too slow. Redrive when it has recovered.",
    Reason.IMAGE_UNAVAILABLE: (
        "The host of the source picture did not answer. Redrive when it is back."
    ),
    Reason.WORKER_LOST: (
        "The workers that took this row were lost each time, or its outcome was. Look at the "
        "editor's log for this row, then redrive or upload the CSV again."
    ),
    Reason.NO_ENDPOINT: (
        "No endpoint was free or fit for this row in time. Add one to the endpoints secret or "
        "raise its limits, then redrive."
    ),
    Reason.UNPARSEABLE: "The message was not one of Darkroom's. Upload the CSV again.",
}


def remediation(reason: str) -> str:
    """A sentence for any reason, also one written by a newer version."""
    return REMEDIATIONS.get(reason, "Look at the detail, then redrive or upload the CSV again.")
