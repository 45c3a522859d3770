"""Makes a job's report; event: `{"job": "jobs/products"}`."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from darkroom import bootstrap


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, str]:
    job = str(event["job"])
    with bootstrap.invocation(context.aws_request_id) as wiring:
        outcome = wiring.reporter.report(job, owner=context.aws_request_id)
    return {"job": job, "outcome": outcome.value}
