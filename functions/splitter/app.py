"""Splits an uploaded CSV; invoked by S3, or by itself to continue with a long file.

A schedule invokes it with `{"sweep": true}`, to restart what stopped in unfinished jobs.
"""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from darkroom import bootstrap
from darkroom.aws.events import uploads_in


def handler(event: dict[str, Any], context: LambdaContext) -> None:
    def remaining_seconds() -> float:
        return context.get_remaining_time_in_millis() / 1000

    with bootstrap.invocation(context.aws_request_id) as wiring:
        if event.get("sweep"):
            wiring.sweep.sweep(remaining_seconds)
        for upload in uploads_in(event):
            wiring.splitter.split(upload, remaining_seconds)
