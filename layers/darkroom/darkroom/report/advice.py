"""What to do next about a row that did not succeed, one sentence per reason."""

from darkroom.errors import Reason

ADVICE: dict[str, str] = {
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


def advice(reason: str) -> str:
    """A sentence for any reason, also one written by a newer version."""
    return ADVICE.get(reason, "Look at the detail, then redrive or upload the CSV again.")
