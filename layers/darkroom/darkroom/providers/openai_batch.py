"""OpenAI's Batch API for `images/edits` and `images/generations`.

Sources: openai 3.52 (batches.create, files.create, types.Batch, types.ImageInputReferenceParam) and
https://developers.openai.com/api/docs/guides/batch; docs/batch.md says what neither confirms.
"""

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, Literal

import httpx2

from darkroom.batches.provider_batch import BatchGroup, BatchLimits, BatchStatus, ProviderBatch
from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome, SourceImage
from darkroom.errors import Ineligible
from darkroom.formatting import clean_text
from darkroom.providers.batches import BATCHES_OF_A_PAGE, SdkBatches, checked_id
from darkroom.providers.errors import Failure, Rule, classify, names
from darkroom.providers.openai import (
    BASE_URL,
    OPENAI_TABLE,
    OpenAIImageEditor,
    headers_of_call,
    request_options,
)

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

type _Operation = Literal["/v1/images/edits", "/v1/images/generations"]
_EDITS: _Operation = "/v1/images/edits"
_GENERATIONS: _Operation = "/v1/images/generations"
_NAME = "darkroom_batch"  # of the metadata: 16 pairs of up to 64 and 512 characters
_MAX_URL_CHARACTERS = 20_971_520  # maxLength of image_url in OpenAI's description of its API
_FILES_EXPIRE_SECONDS = 7 * 86_400  # should the batch's files never be deleted
_SHOWN_ERRORS = 3

# Codes beside those of single calls. Of requests: BatchRequestOutputError in OpenAI's description
# of its API. Of batches: quoted in several public repositories, such as
# https://github.com/BerriAI/litellm, https://community.openai.com/t/batch-api-enqueued-token-limit.
OPENAI_BATCH_TABLE: tuple[Rule, ...] = (
    # "Cannot find file file-1, or organization org-1 does not have access to it", of one uploaded
    # just before: an outage of hours on 2026-09-01, in the tests of a public repository.
    Rule(Outcome.UNAVAILABLE, text=r"cannot find file\b.{0,120}?\bdoes not have access"),
    Rule(Outcome.UNAVAILABLE, names=names("batch_expired", "batch_cancelled")),
    Rule(Outcome.UNAVAILABLE, names=names("request_timeout"), maybe_charged=True),
    Rule(Outcome.RATE_LIMITED, names=names("token_limit_exceeded")),
    Rule(Outcome.RATE_LIMITED, text=r"enqueued token limit"),
    *OPENAI_TABLE,
)


class OpenAIBatches(SdkBatches["OpenAI"], OpenAIImageEditor):
    """Images are in the requests, as data URLs: no uploads of their own that would need cleaning.

    "The batch input file is larger than the 209715200 maximum": 200 MB are MiB.
    """

    limits = BatchLimits(max_requests=50_000, max_file_bytes=200 * 1024 * 1024)
    table = OPENAI_BATCH_TABLE
    statuses: ClassVar[Mapping[str, BatchStatus]] = {
        "validating": BatchStatus.VALIDATING,
        "in_progress": BatchStatus.RUNNING,
        "finalizing": BatchStatus.RUNNING,
        "completed": BatchStatus.SUCCEEDED,
        "failed": BatchStatus.FAILED,
        "expired": BatchStatus.EXPIRED,
        "cancelling": BatchStatus.CANCELLING,
        "cancelled": BatchStatus.CANCELLED,
    }

    def request_line(self, custom_id: str, plan: CallPlan) -> bytes:
        body = request_options(plan, self._model(self._endpoint, plan))
        if plan.images:
            body["images"] = [{"image_url": _data_url(image)} for image in plan.images]
        if plan.mask is not None:
            body["mask"] = {"image_url": _data_url(plan.mask)}
        url = self._group(plan).operation
        line = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"

    def _unsupported(self) -> str | None:
        if self._endpoint.api_version is not None:
            return "is an Azure deployment: mode=batch works with OpenAI's own API"
        return None

    def _group(self, plan: CallPlan) -> BatchGroup:
        for image in (*plan.images, *((plan.mask,) if plan.mask else ())):
            if len(image.data) * 4 // 3 + 32 > _MAX_URL_CHARACTERS:
                raise Ineligible(f"{image.name} is larger than the 15 MB of an image in a batch")
        return BatchGroup(plan.model, _EDITS if plan.images else _GENERATIONS)

    @cached_property
    def _openai(self) -> "OpenAI":
        return self._client(self._endpoint.base_url or BASE_URL, None, None)

    @property
    def _headers(self) -> dict[str, str]:
        return headers_of_call(self._endpoint, self._key)

    def _upload(self, name: str, requests: BinaryIO, timeout_seconds: float) -> str:
        uploaded = self._openai.files.create(
            file=(f"{name}.jsonl", requests, "application/jsonl"),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": _FILES_EXPIRE_SECONDS},
            extra_headers=self._headers,
            timeout=timeout_seconds,
        )
        return checked_id(uploaded.id)

    def _start(
        self, name: str, group: BatchGroup, file: str, timeout_seconds: float
    ) -> ProviderBatch:
        batch = self._openai.batches.create(
            completion_window="24h",
            endpoint=_EDITS if group.operation == _EDITS else _GENERATIONS,
            input_file_id=file,
            metadata={_NAME: name},
            output_expires_after={"anchor": "created_at", "seconds": _FILES_EXPIRE_SECONDS},
            extra_headers=self._headers,
            timeout=timeout_seconds,
        )
        return self._batch(batch)

    def _retrieve(self, batch_id: str, timeout_seconds: float) -> ProviderBatch:
        headers = self._headers
        return self._batch(
            self._openai.batches.retrieve(batch_id, extra_headers=headers, timeout=timeout_seconds)
        )

    def _pages(self, timeout_seconds: float) -> Iterator[list[ProviderBatch]]:
        page = self._openai.batches.list(
            limit=BATCHES_OF_A_PAGE, extra_headers=self._headers, timeout=timeout_seconds
        )
        while page.data:
            yield [self._batch(batch) for batch in page.data]
            if not page.has_next_page():
                return
            page = page.get_next_page()

    def _stop(self, batch_id: str, timeout_seconds: float) -> None:
        headers = self._headers
        self._openai.batches.cancel(batch_id, extra_headers=headers, timeout=timeout_seconds)

    def _delete(self, file: str, timeout_seconds: float) -> None:
        self._openai.files.delete(file, extra_headers=self._headers, timeout=timeout_seconds)

    def _download(
        self, file: str, headers: dict[str, str], timeout_seconds: float
    ) -> AbstractContextManager[httpx2.Response]:
        @contextmanager
        def opened() -> Iterator[httpx2.Response]:
            with self._openai.files.with_streaming_response.content(
                file, extra_headers=self._headers | headers, timeout=timeout_seconds
            ) as response:
                yield response.http_response

        return opened()

    def _batch(self, batch: "Batch") -> ProviderBatch:
        counts, files = batch.request_counts, (batch.output_file_id, batch.error_file_id)
        name = (batch.metadata or {}).get(_NAME)
        succeeded = (counts and counts.completed) or 0
        status = self._status(
            batch.status, answered=succeeded, has_results=bool(batch.output_file_id)
        )
        return ProviderBatch(
            checked_id(batch.id),
            name if isinstance(name, str) else "",
            status,
            float(batch.created_at or 0),
            requests=(counts and counts.total) or 0,
            succeeded=succeeded,
            failed=(counts and counts.failed) or 0,
            request_file=checked_id(batch.input_file_id) if batch.input_file_id else "",
            result_files=tuple(checked_id(file) for file in files if file),
            failure=self._batch_failure(batch) if status is BatchStatus.FAILED else None,
        )

    def _batch_failure(self, batch: "Batch") -> CallFailed:
        errors = (batch.errors and batch.errors.data) or []
        texts = [
            (f"line {error.line}: " if error.line else "") + (error.message or error.code or "")
            for error in errors[:_SHOWN_ERRORS]
        ]
        found = [error.code for error in errors]
        if any(error.param in ("model", "body.model") for error in errors):
            found.append("param:model")
        text = clean_text("; ".join(texts), self._key) or "the batch failed"
        return classify(self.table, Failure(400, names(*found), text), key=self._key)

    def _custom_id(self, item: Any) -> str:
        return checked_id(item["custom_id"])

    def _outcome(self, item: Any, plan: CallPlan) -> EditResult:
        from openai.types import ImagesResponse  # noqa: PLC0415 - see SdkImageEditor

        response = item.get("response")
        if not response:
            error = item["error"]
            failure = Failure(0, names(error["code"]), str(error.get("message") or error["code"]))
            raise classify(self.table, failure, key=self._key)
        status, body = response["status_code"], response["body"]
        if status != httpx2.codes.OK or body.get("error"):
            answer = httpx2.Response(status, json=body)
            failure = self._failure(answer, self._endpoint)
            raise classify(self.table, failure, key=self._key)
        return self._read(ImagesResponse.construct(**body), plan, self._endpoint, self._key)


def _data_url(image: SourceImage) -> str:
    return f"data:{image.mime};base64,{base64.b64encode(image.data).decode()}"
