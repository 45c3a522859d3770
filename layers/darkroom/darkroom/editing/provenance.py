"""What an image's metadata tells of it: enough to settle its row if its worker died just then."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from darkroom.jobs import ResultPaths
from darkroom.ledger.values import Claim, RowRecord, RowResult, RowState
from darkroom.limits.errand import Delivery
from darkroom.rows import RowRequest

_SEPARATOR = " | "
_LONGEST_WARNINGS = 600  # characters; S3 takes 2 KB of metadata in all


def image_name(request: RowRequest, key: str) -> str:
    """The path under images/ of a row's (first) picture, with its extension."""
    name = request.output_name or f"{key}.png"
    return name if PurePosixPath(name).suffix else f"{name}.png"


def result_of(
    delivery: Delivery, claim: Claim, outputs: tuple[str, ...], warnings: tuple[str, ...]
) -> RowResult:
    """The outcome of a call that gave images; its cost includes the row's earlier calls."""
    cost = delivery.answer.cost_micro_usd
    return RowResult(
        status=RowState.SUCCEEDED,
        outputs=outputs,
        provider=delivery.plan.provider.value,
        endpoint=delivery.endpoint.name,
        model=delivery.answer.model or delivery.plan.model,
        fallback=delivery.fallback,
        latency_ms=delivery.latency_ms,
        cost_micro_usd=None if cost is None else claim.record.spent + cost,
        warnings=warnings,
    )


def to_metadata(claim: Claim, result: RowResult) -> dict[str, str]:
    """User metadata of each of the row's images. `cost-micro-usd` is missing where not known."""
    metadata = {
        "job": claim.job,
        "row": claim.key,
        "run": claim.run,
        "run-number": str(claim.record.run_number),
        "fingerprint": claim.record.fingerprint,
        "provider": result.provider or "",
        "endpoint": result.endpoint or "",
        "model": result.model or "",
        "fallback": str(result.fallback).lower(),
        "latency-ms": str(result.latency_ms),
        "images": str(len(result.outputs)),
    }
    if result.cost_micro_usd is not None:
        metadata["cost-micro-usd"] = str(result.cost_micro_usd)
    if result.warnings:
        metadata["warnings"] = _SEPARATOR.join(result.warnings)[:_LONGEST_WARNINGS]
    return metadata


@dataclass(frozen=True, slots=True)
class Stored:
    """An image found in the results bucket."""

    metadata: Mapping[str, str]

    @property
    def etag(self) -> str:
        return self.metadata["etag"]

    @property
    def run_number(self) -> int:
        """0 where the metadata does not tell, as of a file that somebody put there by hand."""
        number = self.metadata.get("run-number", "")
        return int(number) if number.isdecimal() else 0

    def answers(self, record: RowRecord, run: str) -> bool:
        """It is what a call for this very row and wish gave, made in `run`."""
        found = (self.metadata.get("row"), self.metadata.get("fingerprint"))
        return found == (record.key, record.fingerprint) and self.metadata.get("run") == run

    def result(self, paths: ResultPaths, name: str) -> RowResult:
        metadata = self.metadata
        cost = metadata.get("cost-micro-usd")
        warnings = metadata.get("warnings")
        return RowResult(
            status=RowState.SUCCEEDED,
            outputs=tuple(paths.image(name, copy) for copy in range(int(metadata["images"]))),
            provider=metadata.get("provider") or None,
            endpoint=metadata.get("endpoint") or None,
            model=metadata.get("model") or None,
            fallback=metadata.get("fallback") == "true",
            latency_ms=int(metadata.get("latency-ms", "0")),
            cost_micro_usd=None if cost is None else int(cost),
            warnings=tuple(warnings.split(_SEPARATOR)) if warnings else (),
        )
