"""A run that needs every permission: what a user sees of it, as one value to compare."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from darkroom_local.processes import wait_until
from darkroom_local.stack import StackInfo
from tests.e2e.jobs import Jobs, Results, picture

OPTIONS = {"max-attempts": "2"}
HEADER = "image_url,instruction\n"
FIRST = (
    ",a lighthouse at dawn",
    "photo.png,make it brighter",
    "gone.png,a picture that is not there",
    # Nobody listens there: the row comes back once, then it is dead.
    "https://127.0.0.1:1/never.png,a picture that cannot be had",
)
SECOND = (",a lighthouse at dusk", *FIRST[1:])  # one row changed, so made again and replaced
# What a run comes to when nothing is forbidden.
EXPECTED = {
    "first": {"0": "succeeded", "1": "succeeded", "2": "failed: bad_image", "3": "dead"},
    "first, instruction": "a lighthouse at dawn",
    "first, missing": True,
    "first, dead letters": 1,
    "second": {"0": "succeeded", "1": "succeeded", "2": "failed: bad_image", "3": "dead"},
    "second, resumed": 1,
    "rejected": "failed",
    "told": 3,
}


@dataclass
class Scenario:
    """Run it under a new job name each time; `seconds` is how long each part may take."""

    info: StackInfo
    inbox: str  # URL of a queue that gets what the jobs topic publishes
    seconds: float
    _seen: dict[str, object] = field(default_factory=dict)

    def run(self, job: str) -> dict[str, object]:
        """What came of it; parts that did not end in time are missing."""
        self._seen = {}
        jobs = Jobs(self.info)
        folder = job.rpartition("/")[0]
        jobs.put(f"{folder}/photo.png", picture())
        for step in (self._first, self._second, self._rejected):
            try:
                step(jobs, job)
            except AssertionError:
                return self._seen  # it was not done, or not in time
        self._until("told", lambda: self._messages(job), 3)
        return self._seen

    def _first(self, jobs: Jobs, job: str) -> None:
        found = self._upload(jobs, job, FIRST)
        self._seen["first"] = _statuses(found)
        # The reporter reads the CSV for the user's own columns.
        self._seen["first, instruction"] = found.manifest[0].get("instruction")
        # With ListBucket S3 says "missing", without it "forbidden".
        self._seen["first, missing"] = "not there" in found.manifest[2]["detail"]
        self._until("first, dead letters", lambda: self._dead_letters(job), 1)

    def _second(self, jobs: Jobs, job: str) -> None:
        found = self._upload(jobs, job, SECOND)
        self._seen["second"] = _statuses(found)
        self._seen["second, resumed"] = found.summary["counts"]["resumed"]

    def _rejected(self, jobs: Jobs, job: str) -> None:
        name = f"{job}-rejected"
        version = jobs.put(f"{name}.csv", b"no,such,columns\n1,2,3\n")
        self._seen["rejected"] = jobs.wait(name, version, self.seconds).summary["state"]

    def _upload(self, jobs: Jobs, job: str, rows: tuple[str, ...]) -> Results:
        version = jobs.put(f"{job}.csv", (HEADER + "\n".join(rows) + "\n").encode(), OPTIONS)
        found = jobs.wait(job, version, self.seconds)
        assert found.summary["state"] == "done", "the file was rejected"
        return found

    def _until(self, name: str, count: Callable[[], int], expected: int) -> None:
        """Wait for a count to come right; what it is in the end is what was seen."""
        total = 0

        def enough() -> bool:
            nonlocal total
            total += count()
            return total >= expected

        wait_until(enough, 10, 0.2)
        self._seen[name] = total

    def _dead_letters(self, job: str) -> int:
        return sum(
            f'"{job}"' in body for body in self._taken(self.info.outputs["DeadLetterQueueUrl"])
        )

    def _messages(self, job: str) -> int:
        told = [json.loads(body)["Message"] for body in self._taken(self.inbox)]
        return sum(f"Job {job}" in message for message in told)

    def _taken(self, queue: str) -> list[str]:
        sqs = self.info.client("sqs")
        found = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", ())
        for message in found:
            sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
        return [message["Body"] for message in found]


def _statuses(results: Results) -> dict[str, str]:
    return {
        row["row"]: f"failed: {row['reason']}" if row["status"] == "failed" else row["status"]
        for row in results.manifest
    }
