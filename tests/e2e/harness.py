"""What a user does with a deployed stack: upload a CSV, wait for its results, read them."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from darkroom_local.processes import wait_until
from darkroom_local.providers import Simulator
from darkroom_local.stack import StackInfo

REPORT_SECONDS = 240.0


def encoded_image(
    colour: str = "teal", size: tuple[int, int] = (160, 120), kind: str = "PNG"
) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, kind)
    return content.getvalue()


@dataclass(frozen=True)
class Results:
    """The objects of one job in the results bucket."""

    s3: Any
    bucket: str
    job: str

    @property
    def summary(self) -> Any:
        return json.loads(self.read("job.json"))

    @property
    def manifest(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.read("manifest.csv").decode("utf-8-sig"))))

    def read(self, name: str) -> bytes:
        return bytes(self._get(f"{self.job}/{name}")["Body"].read())

    def image(self, row: Mapping[str, str]) -> Image.Image:
        return Image.open(io.BytesIO(self._get(row["output"])["Body"].read()))

    def metadata(self, row: Mapping[str, str]) -> dict[str, str]:
        return dict(self._get(row["output"])["Metadata"])

    def names(self) -> set[str]:
        folder = f"{self.job}/"
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=folder)["Contents"]
        return {item["Key"].removeprefix(folder) for item in found}

    def is_for(self, version: str | None) -> bool:
        """Whether job.json is there and reports on that version of the CSV."""
        try:
            summary = self.summary
            return bool(
                summary["source"]["version_id"] == version and summary["state"] != "running"
            )
        except self.s3.exceptions.NoSuchKey:
            return False

    def _get(self, key: str) -> Any:
        return self.s3.get_object(Bucket=self.bucket, Key=key)


class StackHarness:
    """Uploads to a deployed stack; `info` and `simulator` for everything else."""

    def __init__(self, info: StackInfo) -> None:
        self.info = info
        self.s3 = info.client("s3")

    @property
    def simulator(self) -> Simulator:
        return Simulator(str(self.info.providers_url))

    def put(self, key: str, body: bytes, options: Mapping[str, str] | None = None) -> str | None:
        """Upload to the input bucket, as `aws s3 cp --metadata` does; returns the version."""
        bucket, metadata = self.info.outputs["InputBucketName"], dict(options or {})
        answer = self.s3.put_object(Bucket=bucket, Key=key, Body=body, Metadata=metadata)
        version: str | None = answer.get("VersionId")
        return version

    def wait(self, job: str, version: str | None, seconds: float = REPORT_SECONDS) -> Results:
        """Wait until job.json reports on that version of the CSV."""
        results = Results(self.s3, self.info.outputs["ResultsBucketName"], job)
        assert wait_until(lambda: results.is_for(version), seconds, 0.3), (
            f"{job} was not reported within {seconds:.0f} s"
        )
        return results

    def run(self, key: str, body: bytes, options: Mapping[str, str] | None = None) -> Results:
        version = self.put(key, body, options)
        return self.wait(key.removesuffix(".gz").removesuffix(".csv"), version)
