"""The rows of a worker share one memory budget: no deadlock, no starvation, nothing beyond it."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

import pytest

from darkroom.errors import DeferRow
from darkroom.images.memory import MemoryBudget
from darkroom.rows import RowRequest

MIB = 1024 * 1024
EDIT = RowRequest(instruction="warm", images=("a.png",), resolution="1K")


def test_a_share_covers_the_largest_image_until_the_images_are_loaded() -> None:
    budget = MemoryBudget(300 * MIB)
    with budget.share(EDIT) as share:
        assert share.held > 100 * MIB
        assert share.images_loaded(1 * MIB)
        assert 5 * MIB < share.held < 15 * MIB
        assert not share.images_loaded(500 * MIB)  # a share never grows
        assert share.held < 15 * MIB
        with budget.share(EDIT), budget.share(EDIT):
            pass
    assert budget._used == 0


def test_a_row_without_room_is_deferred_and_a_failed_row_gives_its_share_back() -> None:
    budget = MemoryBudget(200 * MIB, wait_seconds=0)
    with budget.share(EDIT), pytest.raises(DeferRow, match="memory"), budget.share(EDIT):
        pytest.fail("both have a share")
    with pytest.raises(ZeroDivisionError), budget.share(EDIT):
        raise ZeroDivisionError
    with budget.share(EDIT):
        pass


def test_a_row_larger_than_the_budget_is_processed_alone() -> None:
    budget = MemoryBudget(300 * MIB, wait_seconds=0)
    huge = EDIT.model_copy(update={"resolution": "4K", "n": 10})
    with budget.share(huge) as share:
        assert share.held == budget.total_bytes
        with pytest.raises(DeferRow), budget.share(EDIT):
            pytest.fail("it is not alone")


def test_larger_answers_take_larger_shares() -> None:
    budget = MemoryBudget(10_000 * MIB)
    held = []
    sizes: list[dict[str, Any]] = [{"resolution": "1K"}, {"resolution": "2K"}, {"resolution": "4K"}]
    for fields in [*sizes, {"resolution": "4K", "n": 2}, {"size": "8192x8192"}]:
        with budget.share(RowRequest.model_validate({"instruction": "x", **fields})) as share:
            held.append(share.held)
    assert held == sorted(held)
    assert held[2] == pytest.approx(36 * MIB, rel=0.05)  # measured: make bench-memory
    assert held[3] > 2 * held[2] + 85 * MIB  # two images of 4K are parsed together


@pytest.mark.parametrize("resolution", ["1K", "2K", "4K"])
def test_ten_rows_have_room_at_once_in_the_memory_of_the_template(resolution: str) -> None:
    budget = MemoryBudget.of_function()
    budget.wait_seconds = 0
    row = EDIT.model_copy(update={"resolution": resolution})
    with ExitStack() as rows:
        for _ in range(10):
            assert rows.enter_context(budget.share(row)).images_loaded(6 * MIB)


def test_a_row_whose_images_are_large_can_have_a_share_for_its_call() -> None:
    budget = MemoryBudget(700 * MIB, wait_seconds=0)
    with budget.share(EDIT) as share:
        assert not share.images_loaded(50 * MIB)
    with budget.share(EDIT, image_bytes=50 * MIB) as share:
        assert share.images_loaded(50 * MIB)
        assert share.held > 250 * MIB
    with budget.share(EDIT, image_bytes=150 * MIB) as share:
        assert share.images_loaded(150 * MIB), "it has all there is"
        assert share.held == budget.total_bytes


def test_rows_get_their_shares_in_order_so_that_none_starves() -> None:
    budget = MemoryBudget(300 * MIB)
    huge = EDIT.model_copy(update={"resolution": "4K", "n": 10})
    order: list[str] = []
    first_has_room, first_may_end = threading.Event(), threading.Event()

    def work(name: str, request: RowRequest) -> None:
        with budget.share(request):
            order.append(name)
            if name == "first":
                first_has_room.set()
                first_may_end.wait(10)

    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(work, "first", EDIT)]
        assert first_has_room.wait(10)
        for name, request in (("huge", huge), ("small", EDIT)):
            jobs.append(pool.submit(work, name, request))
            while len(budget._waiting) < len(jobs) - 1:
                pass
        first_may_end.set()
        wait(jobs)
    assert order == ["first", "huge", "small"]


def test_many_rows_never_take_more_than_the_budget_and_all_are_served() -> None:
    budget = MemoryBudget(500 * MIB)
    peaks: list[int] = []

    def work(number: int) -> None:
        fields = {"resolution": ("1K", "2K", "4K")[number % 3], "n": 1 + number % 10}
        with budget.share(EDIT.model_copy(update=fields)) as share:
            peaks.append(budget._used)
            share.images_loaded(number % 50 * MIB)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(work, range(300)))
    assert len(peaks) == 300
    assert max(peaks) <= budget.total_bytes
    assert budget._used == 0
