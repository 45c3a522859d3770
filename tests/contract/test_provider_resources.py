"""A thousand calls leave nothing open: no sockets, no threads, no warnings."""

import gc
import os
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from darkroom.calls import CallFailed
from darkroom.providers import http as provider_http
from darkroom.providers.registry import Provider
from tests.contract.provider_harness import BOTH, NAME, Harness, photo, running_harness

FAULTS = ["server_error", "drop", "cut_json", "html", "refused", "broken_image", "rate_limited"]


@pytest.fixture
def harness() -> Iterator[Harness]:
    with running_harness() as harness:
        yield harness


def open_files() -> int:
    return len(os.listdir(f"/proc/{os.getpid()}/fd"))  # noqa: PTH208 - no need for paths


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
@pytest.mark.parametrize("provider", BOTH)
def test_a_thousand_calls_leave_nothing_open(harness: Harness, provider: Provider) -> None:
    """Successful calls and calls that fail in every way, from eight threads."""
    faults = [{"kind": kind, "when": {"rate": 0.05}} for kind in FAULTS]
    harness.simulator.configure(
        {"seed": 5, "endpoints": {NAME: {"mode": "fast", "faults": faults}}}
    )
    outcomes: list[str] = []

    def call(_: int) -> None:
        try:
            harness.call(provider, photo())
            outcomes.append("succeeded")
        except CallFailed as failed:
            outcomes.append(failed.outcome.value)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(call, range(20)))  # imports and the first connections
            threads, files = threading.active_count(), open_files()
            list(pool.map(call, range(980)))
            assert threading.active_count() == threads
            assert open_files() <= files + 8 * 2  # both ends of a connection are in this process
        harness.close()
        gc.collect()
    assert [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)] == []
    assert len(outcomes) == 1000
    assert 500 < outcomes.count("succeeded") < 950
    assert len(set(outcomes)) >= 4


@pytest.mark.parametrize("provider", BOTH)
def test_threads_share_connections(harness: Harness, provider: Provider) -> None:
    """Fifty calls on four threads need no more than four connections."""
    harness.set_up(latency={"kind": "fixed", "seconds": 0.01})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: harness.call(provider, photo()), range(50)))
    assert harness.stats()["connections"] <= 4
    assert harness.stats()["calls"] == 50


def test_a_closed_editor_opens_new_connections(harness: Harness) -> None:
    harness.set_up()
    for provider in BOTH:
        harness.call(provider, photo())
        harness.close()
        harness.call(provider, photo())
    assert harness.stats()["statuses"] == {"200": 4}


def test_both_providers_share_one_http_client_and_a_deadline_ends_with_its_block(
    harness: Harness,
) -> None:
    harness.set_up()
    with provider_http.deadline(0.0):
        pass
    for provider in BOTH:
        assert harness.call(provider, photo()).images
    assert provider_http.shared_client.cache_info().currsize == 1
