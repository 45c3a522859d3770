"""A user's view of a deployed stack: upload a CSV, wait for its results, read them."""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from darkroom_local.processes import wait_until
from darkroom_local.stack import StackInfo

SECONDS = 120.0


def picture(colour: str = "teal", size: tuple[int, int] = (160, 120), kind: str = "PNG") -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, colour).save(made, kind)
    return made.getvalue()


@dataclass(frozen=True)
class Results:
    """What lies in the results bucket for one job."""

    info: StackInfo
    job: str

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.read("job.json"))
        return found

    @property
    def manifest(self) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(self.read("manifest.csv").decode("utf-8-sig"))))

    def read(self, name: str) -> bytes:
        return self._get(f"{self.job}/{name}")["Body"].read()  # type: ignore[no-any-return]

    def image(self, row: Mapping[str, str]) -> Image.Image:
        return Image.open(io.BytesIO(self._get(row["output"])["Body"].read()))

    def metadata(self, row: Mapping[str, str]) -> dict[str, str]:
        return dict(self._get(row["output"])["Metadata"])

    def names(self) -> set[str]:
        s3 = self.info.client("s3")
        pages = s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.info.outputs["ResultsBucketName"], Prefix=f"{self.job}/"
        )
        found = {item["Key"].removeprefix(f"{self.job}/") for p in pages for item in p["Contents"]}
        s3.close()
        return found

    def _get(self, key: str) -> Any:
        return self.info.client("s3").get_object(
            Bucket=self.info.outputs["ResultsBucketName"], Key=key
        )


@dataclass(frozen=True)
class Jobs:
    info: StackInfo

    def put(self, key: str, body: bytes, options: Mapping[str, str] | None = None) -> str | None:
        """Into the input bucket, as `aws s3 cp --metadata` does; returns the version."""
        answer = self.info.client("s3").put_object(
            Bucket=self.info.outputs["InputBucketName"],
            Key=key,
            Body=body,
            Metadata=dict(options or {}),
        )
        version: str | None = answer.get("VersionId")
        return version

    def wait(self, job: str, version: str | None, seconds: float = SECONDS) -> Results:
        """Until job.json tells of that version of the CSV."""
        results = Results(self.info, job)

        def told() -> bool:
            try:
                return bool(results.summary["source"]["version_id"] == version)
            except self.info.client("s3").exceptions.NoSuchKey:
                return False

        assert wait_until(told, seconds, 0.3), f"{job} was not done within {seconds:.0f} s"
        return results

    def run(self, key: str, body: bytes, options: Mapping[str, str] | None = None) -> Results:
        version = self.put(key, body, options)
        return self.wait(key.removesuffix(".gz").removesuffix(".csv"), version)
