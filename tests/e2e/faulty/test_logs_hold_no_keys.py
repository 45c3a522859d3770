"""Keys appear nowhere, even when a provider quotes them; each attempt is told once."""

import json
import re

import pytest
from pydantic import SecretStr

from darkroom.endpoints import key_fingerprint
from tests.e2e.faulty.conftest import KEYS, PROMPTS, REJECTED, FaultyRun

pytestmark = pytest.mark.e2e

# A long run of base64, or the start of a PNG or JPEG as Python shows bytes.
IMAGE_BYTES = re.compile(r"[A-Za-z0-9+/_-]{200}|\\x89PNG|\\xff\\xd8")


def test_the_run_met_its_faults(faulty_run: FaultyRun) -> None:
    """Else the tests below would prove nothing."""
    outcomes = {line["outcome"] for line in faulty_run.lines("attempt")}
    assert outcomes >= {
        "succeeded",
        "refused",
        "no_image",
        "bad_request",
        "rate_limited",
        "unavailable",
        "key_rejected",
    }
    statuses = [row["status"] for row in faulty_run.manifest]
    assert len(statuses) == len(PROMPTS) + 1
    assert {"succeeded", "failed", "dead"} == set(statuses)


@pytest.mark.parametrize("key", KEYS)
def test_no_key_is_in_a_log(faulty_run: FaultyRun, key: str) -> None:
    assert [line for line in faulty_run.logs if key in line] == []


@pytest.mark.parametrize("key", KEYS)
def test_no_key_is_in_a_result_table_or_dead_letter(faulty_run: FaultyRun, key: str) -> None:
    assert [where for where, text in faulty_run.traces.items() if key in text] == []
    assert key not in json.dumps(faulty_run.manifest)


def test_a_rejected_key_is_named_by_its_fingerprint(faulty_run: FaultyRun) -> None:
    told = {line["key"] for line in faulty_run.lines("key_rejected")}
    assert told == {key_fingerprint(SecretStr(REJECTED))}


def test_no_image_bytes_are_in_a_log(faulty_run: FaultyRun) -> None:
    assert [line for line in faulty_run.logs if IMAGE_BYTES.search(line)] == []


def test_every_attempt_is_one_line_that_says_whose_it_was(faulty_run: FaultyRun) -> None:
    lines = faulty_run.lines("attempt")
    asked = ("job", "row", "endpoint", "outcome", "latency_ms", "slot_wait_ms", "correlation_id")
    lacking = [(line, name) for line in lines for name in asked if line.get(name) in (None, "")]
    assert lacking == []
    calls = sum(counts["calls"] for counts in faulty_run.provider_stats.values())
    assert len(lines) == calls
