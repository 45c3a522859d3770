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
from darkroom_local.providers import running
from tests.contract.provider_world import BOTH, KEY, NAME, World, photo

FAULTS = ["server_error", "drop", "cut_json", "html", "refused", "broken_image", "rate_limited"]


@pytest.fixture
def world() -> Iterator[World]:
    with running() as simulator:
        world = World(simulator)
        yield world
        world.close()


def open_files() -> int:
    return len(os.listdir(f"/proc/{os.getpid()}/fd"))  # noqa: PTH208 - no need for paths


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
@pytest.mark.parametrize("provider", BOTH)
def test_a_thousand_calls_leave_nothing_open(world: World, provider: Provider) -> None:
    """Good ones, and ones that break in every way, from eight threads."""
    rules = [{"kind": kind, "when": {"rate": 0.05}} for kind in FAULTS]
    world.simulator.configure({"seed": 5, "endpoints": {NAME: {"mode": "fast", "faults": rules}}})
    outcomes: list[str] = []

    def one(_: int) -> None:
        try:
            world.call(provider, photo())
            outcomes.append("succeeded")
        except CallFailed as failed:
            outcomes.append(failed.outcome.value)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, range(20)))  # imports and the first connections
            threads, files = threading.active_count(), open_files()
            list(pool.map(one, range(980)))
            assert threading.active_count() == threads
            assert open_files() <= files + 8 * 2  # both ends of a connection are in this process
        world.close()
        gc.collect()
    assert [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)] == []
    assert len(outcomes) == 1000
    assert 500 < outcomes.count("succeeded") < 950
    assert len(set(outcomes)) >= 4


@pytest.mark.parametrize("provider", BOTH)
def test_threads_share_connections(world: World, provider: Provider) -> None:
    """Fifty calls on four threads need no more than four connections."""
    world.set_up(latency={"kind": "fixed", "seconds": 0.01})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: world.call(provider, photo()), range(50)))
    assert world.stats()["connections"] <= 4
    assert world.stats()["calls"] == 50


def test_a_closed_editor_opens_again(world: World) -> None:
    world.set_up()
    for provider in BOTH:
        world.call(provider, photo())
        world.close()
        world.call(provider, photo())
    assert world.stats()["statuses"] == {"200": 4}


def test_both_providers_share_one_client(world: World) -> None:
    world.set_up()
    for provider in BOTH:
        world.call(provider, photo())
    assert provider_http.shared_client.cache_info().currsize == 1


def test_a_deadline_ends_with_its_block() -> None:
    with provider_http.deadline(0.0):
        pass
    with running() as simulator:
        world = World(simulator)
        world.set_up()
        assert world.call(Provider.GEMINI, photo(), key=KEY).images
        world.close()
