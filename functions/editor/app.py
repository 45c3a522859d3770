"""Handles a batch of row messages from the queue; returns those to be delivered again."""

import time
from typing import Any

from aws_lambda_powertools.utilities.batch.types import PartialItemFailureResponse
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSEvent, SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from darkroom import bootstrap
from darkroom.rows import Received

# Kept free before the time limit, to store and settle the rows in progress.
RESERVE_SECONDS = 20


def handler(event: dict[str, Any], context: LambdaContext) -> PartialItemFailureResponse:
    batch = [_received(record) for record in SQSEvent(event).records]
    deadline = time.time() + context.get_remaining_time_in_millis() / 1000 - RESERVE_SECONDS
    with bootstrap.invocation(context.aws_request_id) as wiring:
        editor = wiring.editor  # also for no messages: `darkroom doctor` sends none
        returned = editor.handle(batch, deadline, context.aws_request_id) if batch else []
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in returned]}


def _received(record: SQSRecord) -> Received:
    return Received(
        message_id=record.message_id,
        receipt=record.receipt_handle,
        body=record.body,
        receive_count=int(record.attributes.approximate_receive_count),
        sent_at=int(record.attributes.sent_timestamp) / 1000,
    )
