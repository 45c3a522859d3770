"""Makes a job's report; event: `{"job": "jobs/products"}`.

With `"progress": true`, writes job.json of a run under way. A report that continues in another
invocation adds its `owner`.
"""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from darkroom import bootstrap


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, str]:
    job, owner = str(event["job"]), str(event.get("owner") or context.aws_request_id)
    with bootstrap.invocation(context.aws_request_id) as wiring:
        reporter = wiring.reporter
        if event.get("progress"):
            outcome = reporter.progress(job)
        else:
            outcome = reporter.report(
                job, owner, lambda: context.get_remaining_time_in_millis() / 1000
            )
    return {"job": job, "outcome": outcome.value}
