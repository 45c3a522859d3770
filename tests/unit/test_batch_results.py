"""Reading a batch's results file: any pieces, hostile lines, and bounded memory."""

import base64
import io
import itertools
import json
import random
import re
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import SecretStr

from darkroom.batches.provider_batch import (
    MAX_LINE_BYTES,
    BatchAnswer,
    BatchStatus,
    ProviderBatch,
)
from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.endpoints import Endpoint
from darkroom.providers.batches import SdkBatches
from darkroom.providers.gemini_batch import GeminiBatches
from darkroom.providers.http import MAX_RESPONSE_BYTES, new_client
from darkroom.providers.openai_batch import OpenAIBatches
from darkroom.providers.registry import Provider

KEY = SecretStr("sk-test-0123456789abcdef")
FILES = {Provider.OPENAI: "file-1", Provider.GEMINI: "files/f1"}
ADAPTERS: dict[Provider, Any] = {Provider.OPENAI: OpenAIBatches, Provider.GEMINI: GeminiBatches}
both = pytest.mark.parametrize("provider", list(Provider), ids=lambda provider: provider.value)


def png(side: int = 4) -> bytes:
    out = io.BytesIO()
    noise = random.Random(0).randbytes(side * side * 3)
    Image.frombytes("RGB", (side, side), noise).save(out, "PNG", compress_level=0)
    return out.getvalue()


def good_line(provider: Provider, custom_id: str, image: bytes) -> bytes:
    """As the provider writes it, for one image."""
    data = base64.b64encode(image).decode()
    if provider is Provider.GEMINI:
        part = {"inlineData": {"mimeType": "image/png", "data": data}}
        candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP"}
        answer: dict[str, Any] = {"key": custom_id, "response": {"candidates": [candidate]}}
    else:
        body = {"created": 1, "data": [{"b64_json": data}]}
        response = {"status_code": 200, "request_id": "r", "body": body}
        answer = {"id": "b", "custom_id": custom_id, "response": response, "error": None}
    return json.dumps(answer).encode() + b"\n"


class Pieces(httpx2.SyncByteStream):
    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        yield from self._pieces


def serving(pieces: list[bytes], *, ranges: bool) -> httpx2.MockTransport:
    """A server of one file, in these pieces where the whole file is sent."""

    def respond(request: httpx2.Request) -> httpx2.Response:
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        if wanted is None or not ranges:
            return httpx2.Response(200, stream=Pieces(pieces))
        rest = b"".join(pieces)[int(wanted[1]) :]
        return httpx2.Response(206 if rest else 416, stream=Pieces([rest]))

    return httpx2.MockTransport(respond)


def adapter(provider: Provider, transport: httpx2.BaseTransport) -> SdkBatches[Any]:
    fields = {"provider": provider, "name": "e", "api_keys": ["k" * 20]}
    endpoint = Endpoint.model_validate(fields)
    batches: SdkBatches[Any] = ADAPTERS[provider](endpoint, KEY, new_client(transport))
    return batches


def batch_of(provider: Provider) -> ProviderBatch:
    files = (FILES[provider],)
    return ProviderBatch("b1", "n", BatchStatus.SUCCEEDED, 0, result_files=files)


def no_plan(custom_id: str) -> CallPlan | None:
    return None


def read(
    provider: Provider, transport: httpx2.BaseTransport, position: str = ""
) -> Iterator[BatchAnswer]:
    batches = adapter(provider, transport)
    return batches.results(batch_of(provider), no_plan, 30, position=position)


def read_bytes(provider: Provider, *lines: bytes) -> list[BatchAnswer]:
    return list(read(provider, serving(list(lines), ranges=True)))


@both
@pytest.mark.parametrize("ranges", [True, False])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_answers_do_not_depend_on_how_a_file_arrives(
    provider: Provider, ranges: bool, data: st.DataObject
) -> None:
    image = png()
    content = b"\n".join(
        good_line(provider, f"r{i}", image).rstrip(b"\n") for i in range(4)
    ) + data.draw(st.sampled_from([b"", b"\n", b"\n\n"]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=8)))
    bounds = [0, *cuts, len(content)]
    pieces = [content[a:b] for a, b in itertools.pairwise(bounds)]
    answers = list(read(provider, serving(pieces, ranges=ranges)))
    assert [a.custom_id for a in answers] == ["r0", "r1", "r2", "r3"]
    after = data.draw(st.integers(0, 3))
    rest = list(read(provider, serving(pieces, ranges=ranges), answers[after].position))
    assert [a.custom_id for a in rest] == ["r0", "r1", "r2", "r3"][after + 1 :]


@both
@pytest.mark.parametrize(
    "line",
    [
        b"no JSON\n",
        b"[]\n",
        b"null\n",
        b"7\n",
        b"\xff\xfe\n",
        b"{}\n",
        b'{"custom_id": 7, "key": 7}\n',
        b'{"custom_id": "../r0", "key": "../r0"}\n',
        b'{"custom_id": "", "key": ""}\n',
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_line_that_cannot_be_read_is_of_an_unknown_row(provider: Provider, line: bytes) -> None:
    answers = read_bytes(provider, line, good_line(provider, "r1", png()))
    assert [a.custom_id for a in answers] == [None, "r1"]
    assert isinstance(answers[0].outcome, CallFailed)
    assert isinstance(answers[1].outcome, EditResult)


@both
@settings(max_examples=100, deadline=None)
@given(
    answer=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["status_code", "body", "error", "data", "code", "message", "candidates"]
                )
                | st.text(max_size=3),
                inner,
                max_size=4,
            )
        ),
        max_leaves=10,
    ),
    where=st.sampled_from(["response", "error"]),
)
def test_an_answer_of_any_form_is_a_failure_of_its_row(
    provider: Provider, answer: Any, where: str
) -> None:
    line = json.dumps({"custom_id": "r0", "key": "r0", where: answer}).encode() + b"\n"
    (read_answer,) = read_bytes(provider, line)
    assert read_answer.custom_id == "r0"
    assert isinstance(read_answer.outcome, CallFailed)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (3, Outcome.BAD_REQUEST),
        (4, Outcome.UNAVAILABLE),
        (7, Outcome.KEY_REJECTED),
        (8, Outcome.RATE_LIMITED),
        (13, Outcome.UNAVAILABLE),
        (14, Outcome.UNAVAILABLE),
        (400, Outcome.BAD_REQUEST),
        (429, Outcome.RATE_LIMITED),
        (503, Outcome.UNAVAILABLE),
        (0, Outcome.UNAVAILABLE),
        (99, Outcome.UNAVAILABLE),
        ("x", Outcome.UNAVAILABLE),
    ],
)
def test_gemini_states_an_error_by_a_code_of_grpc_or_of_http(code: Any, outcome: Outcome) -> None:
    error = {"code": code, "message": "It failed."}
    line = json.dumps({"key": "r0", "error": error}).encode() + b"\n"
    (answer,) = read_bytes(Provider.GEMINI, line)
    assert isinstance(answer.outcome, CallFailed)
    assert answer.outcome.outcome is outcome
    assert "It failed." in answer.outcome.detail


@both
def test_no_answer_shows_the_key(provider: Provider) -> None:
    text = f"failed with {KEY.get_secret_value()}"
    error = {"code": "x", "message": text}
    line = json.dumps({"custom_id": "r0", "key": "r0", "error": error}).encode() + b"\n"
    for answer in read_bytes(provider, line, text.encode() + b"\n"):
        assert isinstance(answer.outcome, CallFailed)
        assert KEY.get_secret_value() not in f"{answer!r} {answer.outcome} {answer.outcome.detail}"


@both
def test_a_line_without_an_end_does_not_fill_the_memory(provider: Provider) -> None:
    piece = b"x" * (1024 * 1024)
    pieces = MAX_LINE_BYTES // len(piece) * 2

    def respond(request: httpx2.Request) -> httpx2.Response:
        def content() -> Iterator[bytes]:
            yield b'{"key":"r0","custom_id":"r0","response":"'
            for _ in range(pieces):
                yield piece
            yield b"\n" + good_line(provider, "r1", png())

        return httpx2.Response(200, stream=Pieces(content()))

    tracemalloc.start()
    try:
        answers = list(read(provider, httpx2.MockTransport(respond)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [a.custom_id for a in answers] == [None, "r1"]
    assert peak < 1.5 * MAX_LINE_BYTES


@both
def test_results_larger_than_a_response_may_be_are_read_one_line_at_a_time(
    provider: Provider,
) -> None:
    line = good_line(provider, "r0", png(side=1200))  # 4.3 MB, 5.8 MB in base64
    count = MAX_RESPONSE_BYTES // len(line) + 5

    def respond(request: httpx2.Request) -> httpx2.Response:
        def content() -> Iterator[bytes]:
            for _ in range(count):
                for start in range(0, len(line), 65_536):
                    yield line[start : start + 65_536]

        return httpx2.Response(200, stream=Pieces(content()))

    tracemalloc.start()
    try:
        good = sum(
            isinstance(answer.outcome, EditResult)
            for answer in read(provider, httpx2.MockTransport(respond))
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert good == count
    assert peak < 6 * len(line)


@both
def test_an_error_in_place_of_the_file_is_classified(provider: Provider) -> None:
    error = {"error": {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED"}}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(429, json=error))
    with pytest.raises(CallFailed) as caught:
        list(read(provider, transport))
    assert caught.value.outcome is Outcome.RATE_LIMITED


@both
def test_only_usable_ids_become_part_of_a_path(provider: Provider) -> None:
    listed = {"id": "../b", "object": "batch", "created_at": 1, "status": "completed"}
    job = {"name": "batches/../x", "metadata": {"state": "BATCH_STATE_RUNNING"}}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=listed | job))
    with pytest.raises(CallFailed) as caught:
        adapter(provider, transport).status("batches/b1", 30)
    assert caught.value.outcome is Outcome.UNAVAILABLE


@both
@pytest.mark.parametrize("has_file", [True, False])
def test_a_batch_with_answers_has_ended_when_they_can_be_read(
    provider: Provider, has_file: bool
) -> None:
    if provider is Provider.OPENAI:
        counts = {"total": 2, "completed": 1, "failed": 1}
        files = {"output_file_id": "file-2" if has_file else None, "error_file_id": "file-3"}
        body: dict[str, Any] = {"id": "b1", "status": "expired", "created_at": 1, **files}
        body["request_counts"] = counts
    else:
        stats = {"requestCount": "2", "successfulRequestCount": "1"}
        metadata: dict[str, Any] = {"state": "BATCH_STATE_SUCCEEDED", "batchStats": stats}
        if has_file:
            metadata["output"] = {"responsesFile": "files/f2"}
        body = {"name": "batches/b1", "metadata": metadata}
    transport = httpx2.MockTransport(lambda request: httpx2.Response(200, json=body))
    batch = adapter(provider, transport).status("batches/b1", 30)
    assert batch.status.ended is has_file
    assert batch.succeeded == 1
