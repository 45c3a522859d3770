"""Runs that need every permission; the visible results of each are one value to compare."""

import json
from collections.abc import Callable, Mapping

from darkroom_local.processes import wait_until
from darkroom_local.providers import Config, Fault, FaultKind, SimulatedEndpoint, When
from darkroom_local.stack import StackInfo
from tests.e2e.harness import Results, StackHarness, encoded_image

OPTIONS = {"max-attempts": "2"}
ONCE = {"max-attempts": "1"}
HEADER = "image_url,instruction\n"
FIRST = (
    ",a lighthouse at dawn",
    "photo.png,make it brighter",
    "gone.png,an image that does not exist",
    # Nothing listens there: the row is retried once, then it is dead.
    "https://127.0.0.1:1/never.png,an image that cannot be loaded",
)
SECOND = (
    ",a lighthouse at dusk",
    *FIRST[1:],
)  # one row changed, so its image is edited again and replaced
# The results when no permission is missing.
EXPECTED = {
    "first": {"0": "succeeded", "1": "succeeded", "2": "failed: bad_image", "3": "dead"},
    "first, instruction": "a lighthouse at dawn",
    "first, missing": True,
    "first, dead letters": 1,
    "second": {"0": "succeeded", "1": "succeeded", "2": "failed: bad_image", "3": "dead"},
    "second, resumed": 1,
    "rejected": "failed",
    "notifications": 3,
}
# Jobs with mode=batch: the roles of the submitter and the collector.
BATCH_HEADER = "image_url,instruction,n\n"
IN_BATCHES = (
    ",a lighthouse at dawn,",
    "photo.png,make it brighter,",
    "gone.png,an image that does not exist,",
    "https://127.0.0.1:1/never.png,an image that cannot be loaded,",
    ",first attempt fails,",
)
TOO_MANY_IMAGES = (",more images than a request in a batch makes,5",)  # called for instead
OPENAI_ONLY = {"model": "gpt-image-1.5", "fallback": "false"}
LAST_ATTEMPT = (",every attempt fails,",)  # with one attempt: the collector ends the row
BAD_INPUT = ("gone.png,an image that does not exist,",)  # the submitter ends the job's only row
_FAULTS = tuple(
    Fault(kind=FaultKind.SERVER_ERROR, when=When(prompt_contains=text, count=count))
    for text, count in (("first attempt fails", 1), ("every attempt fails", None))
)
FAILING = Config(
    endpoints={name: SimulatedEndpoint(faults=_FAULTS) for name in ("gemini-main", "openai-main")}
)
EXPECTED_OF_BATCHES = {
    "batch": {
        **{str(row): "succeeded" for row in (0, 1, 4)},
        "2": "failed: bad_image",
        "3": "dead",
    },
    "batch, modes": {"0": "batch", "1": "batch", "4": "live"},
    "called instead": {"0": "succeeded"},
    "last attempt": {"0": "dead"},
    "bad input": {"0": "failed: bad_image"},
    "dead letters": 2,
}


class Scenario:
    """Run it under a new job name each time; `seconds` is the time limit of each step."""

    def __init__(self, info: StackInfo, inbox: str, seconds: float) -> None:
        self._harness = StackHarness(info)
        self._inbox = inbox  # URL of a queue subscribed to the jobs topic
        self._seconds = seconds
        self._observed: dict[str, object] = {}

    def run(self, job: str) -> dict[str, object]:
        """The results; those of steps that did not end in time are missing."""
        self._observed = {}
        folder = job.rpartition("/")[0]
        self._harness.put(f"{folder}/photo.png", encoded_image())
        for step in (self._first, self._second, self._rejected):
            try:
                step(job)
            except AssertionError:
                return self._observed  # it failed, or not in time
        self._count_until("notifications", lambda: self._notifications(job), 3)
        return self._observed

    def _first(self, job: str) -> None:
        results = self._upload(job, FIRST)
        self._observed["first"] = _statuses(results)
        # The reporter reads the CSV for the user's own columns.
        self._observed["first, instruction"] = results.manifest[0].get("instruction")
        # With ListBucket S3 answers "missing", without it "forbidden".
        missing = "was not found in bucket" in results.manifest[2]["detail"]
        self._observed["first, missing"] = missing
        self._count_until("first, dead letters", lambda: self._dead_letters(job), 1)

    def _second(self, job: str) -> None:
        results = self._upload(job, SECOND)
        self._observed["second"] = _statuses(results)
        self._observed["second, resumed"] = results.summary["counts"]["resumed"]

    def _rejected(self, job: str) -> None:
        name = f"{job}-rejected"
        version = self._harness.put(f"{name}.csv", b"no,such,columns\n1,2,3\n")
        summary = self._harness.wait(name, version, self._seconds).summary
        self._observed["rejected"] = summary["state"]

    def run_in_batches(self, job: str) -> dict[str, object]:
        """The same of jobs with mode=batch. No job waits for another one to end."""
        self._observed = {}
        self._harness.simulator.configure(FAILING)
        self._harness.put(f"{job.rpartition('/')[0]}/photo.png", encoded_image())
        jobs = {
            "batch": (job, self._put_batch(job, IN_BATCHES, OPTIONS)),
            "called instead": (
                name := f"{job}-live",
                self._put_batch(name, TOO_MANY_IMAGES, OPENAI_ONLY),
            ),
            "last attempt": (name := f"{job}-last", self._put_batch(name, LAST_ATTEMPT, ONCE)),
            "bad input": (name := f"{job}-bad", self._put_batch(name, BAD_INPUT, OPTIONS)),
        }
        for step, (name, version) in jobs.items():
            try:
                results = self._collect_until_reported(name, version)
            except AssertionError:
                return self._observed
            self._observed[step] = _statuses(results)
            if step == "batch":
                made = [row for row in results.manifest if row["status"] == "succeeded"]
                self._observed["batch, modes"] = {row["row"]: row["mode"] for row in made}
        self._count_until("dead letters", lambda: self._dead_letters(job, f"{job}-last"), 2)
        return self._observed

    def _put_batch(self, job: str, rows: tuple[str, ...], options: Mapping[str, str]) -> str | None:
        csv = (BATCH_HEADER + "\n".join(rows) + "\n").encode()
        return self._harness.put(f"{job}.csv", csv, {"mode": "batch", **options})

    def _collect_until_reported(self, job: str, version: str | None) -> Results:
        """The collector looks at the batches every two seconds instead of every five minutes."""
        info = self._harness.info
        results = Results(self._harness.s3, info.outputs["ResultsBucketName"], job)

        def is_reported() -> bool:
            function = info.outputs["CollectorFunctionName"]
            info.client("lambda").invoke(FunctionName=function, Payload=b"{}")
            return results.is_for(version)

        assert wait_until(is_reported, self._seconds, 2.0), "not in time"
        return results

    def _upload(self, job: str, rows: tuple[str, ...]) -> Results:
        csv = (HEADER + "\n".join(rows) + "\n").encode()
        version = self._harness.put(f"{job}.csv", csv, OPTIONS)
        results = self._harness.wait(job, version, self._seconds)
        assert results.summary["state"] == "done", "the file was rejected"
        return results

    def _count_until(self, name: str, count: Callable[[], int], expected: int) -> None:
        """Add up counts until the expected total, or for ten seconds; record the total."""
        total = 0

        def enough() -> bool:
            nonlocal total
            total += count()
            return total >= expected

        wait_until(enough, 10, 0.2)
        self._observed[name] = total

    def _dead_letters(self, *jobs: str) -> int:
        bodies = self._receive(self._harness.info.outputs["DeadLetterQueueUrl"])
        return sum(f'"{job}"' in body for job in jobs for body in bodies)

    def _notifications(self, job: str) -> int:
        messages = [json.loads(body)["Message"] for body in self._receive(self._inbox)]
        return sum(f"Job {job}" in message for message in messages)

    def _receive(self, queue: str) -> list[str]:
        sqs = self._harness.info.client("sqs")
        found = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", ())
        for message in found:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        return [message["Body"] for message in found]


def _statuses(results: Results) -> dict[str, str]:
    return {
        row["row"]: f"failed: {row['reason']}" if row["status"] == "failed" else row["status"]
        for row in results.manifest
    }
