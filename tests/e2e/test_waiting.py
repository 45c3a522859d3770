"""An upload before `darkroom endpoints push`: rows wait, and the job finishes after the push."""

import json
from pathlib import Path

from darkroom.errors import Reason
from darkroom_local.processes import wait_until
from tests.e2e import worker
from tests.e2e.fault_harness import TIMINGS, FaultRates, running
from tests.fakes.services import FakeTelemetry

ROWS = 3


def test_rows_uploaded_before_the_endpoints_wait_and_succeed_after_the_push(tmp_path: Path) -> None:
    rates = FaultRates(ROWS, aws=0.0, providers=0.0, kill_every_seconds=1e9)
    with running(rates, tmp_path) as stack:
        secrets, sqs = stack.client("secretsmanager"), stack.client("sqs")
        arn = stack.settings.endpoints_secret_arn
        endpoints = secrets.get_secret_value(SecretId=arn)["SecretString"]
        secrets.put_secret_value(SecretId=arn, SecretString=json.dumps({"endpoints": []}))
        wiring, ledger = stack.counting(lambda *_: None, FakeTelemetry()), stack.wiring.ledger
        instructions = [f"make it {n}" for n in range(ROWS)]
        job = stack.upload("jobs/early.csv", instructions, **{"max-attempts": "1"})

        worker.poll(sqs, stack.settings, TIMINGS, wiring.editor)
        run = ledger.current(job)
        assert run is not None
        assert run.waiting is not None
        assert run.waiting.reason is Reason.NO_ENDPOINT
        assert "darkroom endpoints push" in run.waiting.detail

        secrets.put_secret_value(SecretId=arn, SecretString=endpoints)

        def is_done() -> bool:
            worker.poll(sqs, stack.settings, TIMINGS, wiring.editor)
            return ledger.report_due(job)

        # Rows that wait look at the endpoints again after a minute, and some jitter.
        assert wait_until(is_done, 240, 0.0)
        counters = ledger.counters(job, run.run)
        assert (counters.succeeded, counters.attempts) == (ROWS, ROWS)
        finished = ledger.current(job)
        assert finished is not None
        assert finished.waiting is None
