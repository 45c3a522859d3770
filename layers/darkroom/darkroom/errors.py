"""The error tree, named for what the caller does next, and the reasons a row can fail for."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """Why a row did not succeed; the value is the manifest's `reason`.

    `remediation` is one sentence or two for the user: what to do about such a row.
    """

    remediation: str

    # The default is for lookups by value, `Reason("refused")`.
    def __new__(cls, value: str, remediation: str = "") -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.remediation = remediation
        return member

    REFUSED = (
        "refused",
        (
            "The provider's safety rules refused this image or instruction. Reword the instruction "
            "or change the image, then upload the CSV again: only changed rows are processed."
        ),
    )
    NO_IMAGE = (
        "no_image",
        "The model answered without an image. Ask for an edit more plainly, then upload again.",
    )
    BAD_INPUT = "bad_input", "Correct the row in the CSV as the detail says, then upload it again."
    BAD_IMAGE = (
        "bad_image",
        (
            "The image is missing, forbidden, too large or not an image. Put a good one in its "
            "place, then upload again with retry-failed=true."
        ),
    )
    BAD_REQUEST = (
        "bad_request",
        (
            "The provider does not accept these settings. Change the row's size, model or images "
            "as the detail says, then upload again."
        ),
    )
    BUDGET = (
        "budget",
        "Upload the CSV again with a larger budget-usd: the job continues where it ended.",
    )
    STOPPED = "stopped", "The job was stopped. Upload the CSV again to continue where it ended."
    OUTCOME_UNKNOWN = (
        "outcome_unknown",
        (
            "A worker was lost while the provider worked on this row, which may have been billed. "
            "Upload again with retry-failed=true to try it once more."
        ),
    )
    # The reasons below end a row only as `dead`, once its attempts are spent.
    RATE_LIMITED = (
        "rate_limited",
        (
            "The provider kept rejecting calls as too frequent. Lower requests_per_minute in the "
            "endpoints secret to what your account allows, then redrive."
        ),
    )
    QUOTA_SPENT = (
        "quota_spent",
        "Top up the provider's account, or enable billing there, or add an endpoint, then redrive.",
    )
    KEY_REJECTED = (
        "key_rejected",
        (
            "The provider rejected the key, or its account or region, as the detail says. Correct "
            "the endpoints secret with `darkroom endpoints push`, then redrive."
        ),
    )
    MODEL_UNAVAILABLE = (
        "model_unavailable",
        (
            "The provider does not have the endpoint's model, or no longer. Name another in the "
            "endpoints secret with `darkroom endpoints push`, then redrive."
        ),
    )
    UNAVAILABLE = "unavailable", "The provider was down or too slow. Redrive when it has recovered."
    IMAGE_UNAVAILABLE = (
        "image_unavailable",
        "The host of the source image did not respond. Redrive when it is back.",
    )
    WORKER_LOST = (
        "worker_lost",
        (
            "The workers that took this row were lost each time, or its outcome was. Look at the "
            "editor's log for this row, then redrive or upload the CSV again."
        ),
    )
    NO_ENDPOINT = (
        "no_endpoint",
        (
            "No endpoint was free or suitable for this row in time. Add one to the endpoints "
            "secret or raise its limits, then redrive."
        ),
    )
    SUPERSEDED = (
        "superseded",
        (
            "A later upload of the CSV took the place of this row's, without the row. Upload the "
            "CSV again with retry-failed=true to edit it."
        ),
    )
    NOT_STORED = (
        "not_stored",
        "The results bucket could not be written. Correct its policy or its key, then redrive.",
    )
    UNPARSEABLE = "unparseable", "The message was not one of Darkroom's. Upload the CSV again."


def remediation(reason: str | None) -> str:
    """The remediation of any reason, also of none and of one written by a newer version."""
    if reason is not None and reason in Reason:
        return Reason(reason).remediation
    return "Look at the detail, then redrive or upload the CSV again."


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why no endpoint can serve rows now, for a cause that is not the rows' own.

    `detail` is one sentence for users. `since` is in Unix seconds.
    """

    reason: Reason
    detail: str
    since: float


class DarkroomError(Exception):
    """Root of all errors that Darkroom raises itself. `str()` is one sentence for a person."""


class JobRejected(DarkroomError):
    """The file or its options cannot be used: the job fails with this sentence."""


class ConfigurationError(DarkroomError):
    """The secret or the environment is wrong: names the field and what to do."""


class ServiceUnavailable(DarkroomError):
    """An AWS service failed even after the SDK's own retries: try again later."""


class UploadLost(ServiceUnavailable):
    """An upload in parts is gone, and its parts with it: start from the first part."""


class RowError(DarkroomError):
    """The row could not be edited. `detail` is a sentence that says why.

    `provider`, `endpoint` and `model` are those of the call that failed, if there was one.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        provider: str | None = None,
        endpoint: str | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.provider = provider
        self.endpoint = endpoint
        self.model = model


class RowRejected(RowError):
    """No retry can help this row: it ends as `failed` with `reason` and `detail`."""


class RetryRow(RowError):
    """This attempt failed, another may succeed: costs an attempt; `dead` when they are spent."""

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        delay_seconds: float = 0.0,
        provider: str | None = None,
        endpoint: str | None = None,
        model: str | None = None,
    ) -> None:
        super().__init__(reason, detail, provider=provider, endpoint=endpoint, model=model)
        self.delay_seconds = delay_seconds


class DeferRow(DarkroomError):
    """The row returns to the queue for `delay_seconds`, at no cost in attempts.

    `waiting` is set when no endpoint can serve the row for a reason other than pace.
    """

    def __init__(
        self, detail: str, *, delay_seconds: float, waiting: Waiting | None = None
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.delay_seconds = delay_seconds
        self.waiting = waiting


class Ineligible(DarkroomError):
    """An endpoint's model cannot honour the row (a mask, say); another endpoint's may."""


class LeaseLost(DarkroomError):
    """Another worker owns the row now: stop without calling and without settling."""
