"""Collects the batches that have ended; invoked by a schedule.

To continue with a long one, it invokes itself with `{"batch": name}`.
"""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from darkroom import bootstrap


def handler(event: dict[str, Any], context: LambdaContext) -> None:
    only = event.get("batch")
    with bootstrap.invocation(context.aws_request_id) as wiring:
        wiring.collector.collect(
            context.aws_request_id,
            lambda: context.get_remaining_time_in_millis() / 1000,
            str(only) if only else None,
        )
