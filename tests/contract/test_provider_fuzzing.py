"""Mutated answers through both real SDKs: each call ends with a result or CallFailed, in time.

`make fuzz-answers` tries many more, at random.
"""

import json
import time
import warnings
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.calls import MAX_RETRY_AFTER_SECONDS, CallFailed, EditResult
from darkroom.csv_input.values import parse_model
from tests.contract.test_provider_answers import SECONDS, assert_safe
from tests.corpus.answers import Answer, answers, outcome_of

MAX_COST = 1_000_000_000  # micro-USD
HEADERS = (
    "retry-after",
    "retry-after-ms",
    "content-type",
    "content-encoding",
    "content-length",
    "location",
    "transfer-encoding",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-images",
)
ODD_VALUES: list[Any] = [
    *(
        None,
        True,
        0,
        -1,
        5,
        2**63,
        1e308,
        -1e308,
        "",
        "²",
        "9" * 400,
        "\u202e\x1b[2J\x00",
        "<" * 9000,
    ),
    *([], {}, [[]], [None], {"error": {}}, "Limit 5, Requested 8", "try again in 9h9m9s", "<PNG>"),
    *(["x"] * 500, {"details": [{"violations": 5}]}, "A" * 70_000, "\ud800"),
]
json_values = st.recursive(
    st.sampled_from(ODD_VALUES) | st.text(max_size=40) | st.integers() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=8,
)
header_values = st.sampled_from(
    ["²", "-1", "1e9", "9" * 400, "gzip", "gzip, gzip", "br", "identity", "text/html", "chunked"]
) | st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\x00"), max_size=60)


@pytest.fixture(autouse=True)
def _no_warning_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def paths(value: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    found = [before]
    if isinstance(value, dict | list):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in inner:
            found += paths(item, (*before, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value in one place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(copy[path[0]], path[1:], new)
    return copy


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Answer, httpx2.Response]:
    """An answer of the corpus with other values, other bytes, another status or other headers."""
    answer = draw(st.sampled_from(answers()))
    text = answer.content()
    if answer.body is not None and draw(st.booleans()):
        body = answer.body
        for _ in range(draw(st.integers(1, 3))):
            body = replaced(body, draw(st.sampled_from(paths(body))), draw(json_values))
        written = json.dumps(body).replace("\\ud800", "?" if draw(st.booleans()) else "\\ud800")
        text = written.encode("utf-8", "replace")
    for _ in range(draw(st.integers(0, 2))):
        cut = draw(st.integers(0, len(text)))
        change = draw(st.binary(max_size=8))
        text = text[:cut] + change + text[cut + draw(st.integers(0, 12)) :]
    status = draw(st.just(answer.status) | st.integers(200, 599))
    names = draw(st.lists(st.sampled_from(HEADERS), max_size=3, unique=True))
    headers = [(n.encode(), draw(header_values).encode("latin-1", "replace")) for n in names]
    headers.append((b"content-type", b"application/json"))
    return answer, httpx2.Response(status, headers=headers, stream=httpx2.ByteStream(text))


@given(mutated())
def test_a_mutated_answer_is_a_result_or_a_failure_in_time(
    mutation: tuple[Answer, httpx2.Response],
) -> None:
    answer, response = mutation
    before = time.thread_time()
    made = outcome_of(response, answer.endpoint(), model_of_row=answer.model_of_row)
    assert time.thread_time() - before < SECONDS
    assert made.cost_micro_usd is None or 0 <= made.cost_micro_usd <= MAX_COST
    if isinstance(made, EditResult):
        assert made.images
        assert parse_model(made.model) == made.model
        return
    assert isinstance(made, CallFailed)
    assert_safe(made)
    wait = made.retry_after_seconds
    assert wait is None or 0 <= wait <= MAX_RETRY_AFTER_SECONDS
