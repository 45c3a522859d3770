"""Puts a batch of row messages into batches at the providers; returns those to deliver again."""

import time
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from darkroom import bootstrap
from darkroom.aws.sqs import received_in

# Kept free before the time limit, to record what was submitted.
RESERVE_SECONDS = 30


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, list[dict[str, str]]]:
    batch = [received_in(record) for record in event["Records"]]
    deadline = time.time() + context.get_remaining_time_in_millis() / 1000 - RESERVE_SECONDS
    with bootstrap.invocation(context.aws_request_id) as wiring:
        submitter = wiring.submitter
        returned = submitter.submit(batch, deadline, context.aws_request_id) if batch else []
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in returned]}
