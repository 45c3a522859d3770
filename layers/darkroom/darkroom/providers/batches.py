"""What the batch adapters share: submitting, finding and streaming the answers of a batch."""

import re
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from functools import partial
from itertools import islice
from typing import Any, BinaryIO, ClassVar

import httpx2
from pydantic import SecretStr
from pydantic_core import from_json

from darkroom.batches.provider_batch import (
    MAX_IMAGES_OF_A_REQUEST,
    MAX_LINE_BYTES,
    BatchAnswer,
    BatchGroup,
    BatchLimits,
    BatchStatus,
    ProviderBatch,
    passed_over,
)
from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.endpoints import Endpoint
from darkroom.errors import Ineligible
from darkroom.models.catalog import Model, model_at
from darkroom.providers.adapter import CallOwner, SdkImageEditor
from darkroom.providers.errors import (
    cause_without_key,
    malformed_response,
    transport_failed,
)
from darkroom.providers.http import deadline

MAX_PAGES = 20  # of the provider's list of batches
BATCHES_OF_A_PAGE = 100
_CLOCK_SKEW_SECONDS = 600.0  # between this machine and the provider
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_POSITION = re.compile(r"(\d{1,3}):(\d{1,15})", re.ASCII)
type _Line = tuple[bytearray | None, int]  # None: over MAX_LINE_BYTES; where the next one begins


class SdkBatches[Client](SdkImageEditor[Client]):
    """A ports.BatchProvider over a provider's SDK, on top of the adapter of its live calls.

    A batch is billed at its own prices, so costs are those of `model_at(…, batch=True)`.
    """

    limits: BatchLimits
    statuses: ClassVar[Mapping[str, BatchStatus]]

    def __init__(
        self, endpoint: Endpoint, key: SecretStr, http: httpx2.Client | None = None
    ) -> None:
        super().__init__(http)
        # A batch has no service tier: it is one.
        self._endpoint = endpoint.model_copy(update={"service_tier": None})
        self._key = key.get_secret_value()

    def group(self, plan: CallPlan) -> BatchGroup:
        name = self._endpoint.name
        if problem := self._unsupported():
            raise Ineligible(f"{name} {problem}")
        if self._model(self._endpoint, plan).batch_factor is None:
            raise Ineligible(f"{plan.model} is not offered in batches")
        if plan.n > MAX_IMAGES_OF_A_REQUEST:
            raise Ineligible(f"a request in a batch makes at most {MAX_IMAGES_OF_A_REQUEST} images")
        images = (*plan.images, *((plan.mask,) if plan.mask else ()))
        if sum(len(image.data) for image in images) * 4 // 3 > self.limits.max_file_bytes * 0.95:
            raise Ineligible("the images are too large together for a batch")
        return self._group(plan)

    def create(
        self, name: str, group: BatchGroup, requests: BinaryIO, timeout_seconds: float
    ) -> ProviderBatch:
        of_row = group.model if group.model != self._endpoint.model else None
        owner = CallOwner(self._endpoint, self._key, timeout_seconds, of_row)
        requests.seek(0)
        with deadline(timeout_seconds):
            file, _ = self._bounded(owner, lambda: self._upload(name, requests, timeout_seconds))
            try:
                batch, _ = self._bounded(
                    owner, lambda: self._start(name, group, file, timeout_seconds)
                )
            except CallFailed as failure:
                # Whatever an outage answers, the batch may have been made.
                failure.maybe_charged |= failure.outcome is Outcome.UNAVAILABLE
                if not failure.maybe_charged:
                    with suppress(CallFailed):
                        self._delete_files((file,), timeout_seconds)
                raise
        return batch

    def find(
        self, name: str, timeout_seconds: float, *, created_after: float
    ) -> ProviderBatch | None:
        earliest = created_after - _CLOCK_SKEW_SECONDS
        pages = self._call_provider(
            timeout_seconds, lambda: self._search(name, earliest, timeout_seconds)
        )
        if pages is not None:
            return max(pages, key=lambda batch: batch.created_at, default=None)
        problem = f"more than {MAX_PAGES * BATCHES_OF_A_PAGE} batches to look through"
        raise CallFailed(Outcome.UNAVAILABLE, problem)

    def _search(
        self, name: str, earliest: float, timeout_seconds: float
    ) -> list[ProviderBatch] | None:
        """The batches with this name; None when there are too many pages to be sure."""
        pages = self._pages(timeout_seconds)
        for page in islice(pages, MAX_PAGES):
            found = [b for b in page if b.name == name and b.created_at >= earliest]
            # No documentation states the order; all that were seen begin with the newest.
            newest_first = bool(page) and page[0].created_at >= page[-1].created_at
            if found or (newest_first and page[0].created_at < earliest):
                return found
        return [] if next(pages, None) is None else None

    def status(self, batch_id: str, timeout_seconds: float) -> ProviderBatch:
        return self._call_provider(
            timeout_seconds, lambda: self._retrieve(batch_id, timeout_seconds)
        )

    def cancel(self, batch_id: str, timeout_seconds: float) -> None:
        try:
            self._call_provider(timeout_seconds, lambda: self._stop(batch_id, timeout_seconds))
        except CallFailed:
            status = self.status(batch_id, timeout_seconds).status
            if not status.ended and status is not BatchStatus.CANCELLING:
                raise

    def delete_files(self, batch: ProviderBatch, timeout_seconds: float) -> None:
        files = (*batch.result_files, *((batch.request_file,) if batch.request_file else ()))
        self._delete_files(files, timeout_seconds)

    def _delete_files(self, files: Iterable[str], timeout_seconds: float) -> None:
        with deadline(timeout_seconds):
            for file in files:
                try:
                    self._call_provider(
                        timeout_seconds, partial(self._delete, file, timeout_seconds)
                    )
                except CallFailed as failure:
                    if failure.outcome.transient:
                        raise

    def results(
        self,
        batch: ProviderBatch,
        plan_of: Callable[[str], CallPlan | None],
        timeout_seconds: float,
        *,
        position: str = "",
        pass_over: bool = False,
    ) -> Iterator[BatchAnswer]:
        matched = _POSITION.fullmatch(position)
        first, start = (int(matched[1]), int(matched[2])) if matched else (0, 0)
        for number, file in enumerate(batch.result_files):
            if number >= first:
                lines = self._lines(file, start if number == first else 0, timeout_seconds)
                for _, end in islice(lines, int(pass_over)):
                    pass_over = False
                    yield passed_over(f"{number}:{end}")
                # `map` holds no answer while the caller has it: one at a time in memory.
                yield from map(partial(self._answer, number, plan_of), lines)

    def _lines(self, file: str, start: int, seconds: float) -> Iterator[_Line]:
        """The file's lines from byte `start` on, each read within `seconds`."""
        # From the line break before: a range that begins at the end of a file is an error.
        begin = max(0, start - 1)
        headers = {"Range": f"bytes={begin}-"} if begin else {}
        owner = self._owner(seconds)
        with ExitStack() as stack:
            response, _ = self._bounded(
                owner,
                lambda: stack.enter_context(self._download(file, headers, seconds)),
                streamed=True,
            )
            partial_content = response.status_code == httpx2.codes.PARTIAL_CONTENT
            skip = start - begin if partial_content else start
            yield from self._split(response.iter_bytes(), skip, start, seconds)

    def _split(
        self, pieces: Iterator[bytes], skip: int, position: int, seconds: float
    ) -> Iterator[_Line]:
        line, too_long = bytearray(), False
        end = time.monotonic() + seconds
        while piece := self._next_piece(pieces, end - time.monotonic()):
            if skip:
                piece, skip = piece[skip:], max(0, skip - len(piece))
                end = time.monotonic() + seconds
            *ended, rest = piece.split(b"\n")
            for part in ended:
                line += part
                position += len(part) + 1
                too_long = too_long or len(line) > MAX_LINE_BYTES
                complete = [None if too_long else line] if line or too_long else []
                line, too_long = bytearray(), False
                while complete:
                    yield complete.pop(), position  # held by the caller alone
                end = time.monotonic() + seconds
            line += rest
            position += len(rest)
            if len(line) > MAX_LINE_BYTES:
                line, too_long = bytearray(), True
        if line or too_long:
            yield None if too_long else line, position

    def _next_piece(self, pieces: Iterator[bytes], seconds: float) -> bytes:
        """The next bytes, none at the end. Raises CallFailed."""
        try:
            with deadline(seconds, streamed=True):
                return next(filter(None, pieces), b"")
        except httpx2.HTTPError as error:
            raise transport_failed(error, seconds) from cause_without_key(error, self._key)
        except Exception as error:  # noqa: BLE001 - whatever a broken response leads to
            failed = malformed_response(error, self._key)
            raise failed from cause_without_key(error, self._key)

    def _answer(
        self, number: int, plan_of: Callable[[str], CallPlan | None], found: _Line
    ) -> BatchAnswer:
        line, end = found
        position = f"{number}:{end}"
        try:
            if line is None:
                raise ValueError("a line is larger than any answer can be")  # noqa: TRY301
            item = from_json(line)
            line.clear()  # the parsed text is as large
            custom_id = self._custom_id(item)
        except Exception as error:  # noqa: BLE001 - whatever the file contains
            return BatchAnswer(None, malformed_response(error, self._key), position)
        try:
            plan = plan_of(custom_id) or CallPlan(
                self._endpoint.provider, self._endpoint.model, "", n=MAX_IMAGES_OF_A_REQUEST
            )
            return BatchAnswer(custom_id, self._outcome(item, plan), position)
        except CallFailed as failure:
            return BatchAnswer(custom_id, failure, position)
        except Exception as error:  # noqa: BLE001 - SDKs raise what they never documented
            return BatchAnswer(custom_id, malformed_response(error, self._key), position)

    def _model(self, endpoint: Endpoint, plan: CallPlan) -> Model:
        return model_at(endpoint, plan.model, batch=True)

    def _owner(self, timeout_seconds: float) -> CallOwner:
        """Of a call that no model is named in: what is not found is a batch or a file."""
        return CallOwner(self._endpoint, self._key, timeout_seconds, model_of_row="")

    def _call_provider[Result](self, timeout_seconds: float, send: Callable[[], Result]) -> Result:
        return self._bounded(self._owner(timeout_seconds), send)[0]

    def _status(self, name: str, *, answered: int, has_results: bool) -> BatchStatus:
        """A status that the provider has added since is taken as one that does not last.

        So is the end of a batch with answers but no file of them yet: they have been billed.
        """
        status = self.statuses.get(name, BatchStatus.RUNNING)
        missing = bool(answered) and not has_results and status is not BatchStatus.FAILED
        return BatchStatus.RUNNING if missing and status.ended else status

    @abstractmethod
    def _unsupported(self) -> str | None:
        """Why the endpoint has no batches, to follow its name."""

    @abstractmethod
    def _group(self, plan: CallPlan) -> BatchGroup:
        """Raises Ineligible."""

    @abstractmethod
    def request_line(self, custom_id: str, plan: CallPlan) -> bytes: ...

    @abstractmethod
    def _upload(self, name: str, requests: BinaryIO, timeout_seconds: float) -> str:
        """The id of the file."""

    @abstractmethod
    def _start(
        self, name: str, group: BatchGroup, file: str, timeout_seconds: float
    ) -> ProviderBatch: ...

    @abstractmethod
    def _retrieve(self, batch_id: str, timeout_seconds: float) -> ProviderBatch: ...

    @abstractmethod
    def _pages(self, timeout_seconds: float) -> Iterator[list[ProviderBatch]]:
        """The provider's batches, page by page."""

    @abstractmethod
    def _stop(self, batch_id: str, timeout_seconds: float) -> None: ...

    @abstractmethod
    def _delete(self, file: str, timeout_seconds: float) -> None: ...

    @abstractmethod
    def _download(
        self, file: str, headers: dict[str, str], timeout_seconds: float
    ) -> AbstractContextManager[httpx2.Response]:
        """A file's content, not read yet."""

    @abstractmethod
    def _custom_id(self, item: Any) -> str:
        """Of one line's JSON. May raise anything."""

    @abstractmethod
    def _outcome(self, item: Any, plan: CallPlan) -> EditResult:
        """The images of one line. Raises CallFailed; may raise anything else."""


def checked_id(value: Any) -> str:
    """An id of the provider's, which becomes part of a path. Raises ValueError."""
    if not isinstance(value, str) or not _ID.fullmatch(value) or ".." in value:
        raise ValueError("no usable id")
    return value
