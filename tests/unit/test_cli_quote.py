"""`darkroom quote`: what a job costs and how long it takes, told before it starts."""

import json
from pathlib import Path
from typing import Any

import pytest

from darkroom.models.catalog import find_model
from darkroom.models.planner import plan_call
from darkroom.providers.registry import Provider
from darkroom.rows import RowRequest
from darkroom_cli.reasons import MOST_GROUPS, Failures
from tests.fakes.command import FakeStack, run
from tests.fakes.services import FakeClock

GEMINI = {"name": "g", "provider": "gemini", "api_keys": ["k1"], "model": "gemini-2.5-flash-image"}
OPENAI = {"name": "o", "provider": "openai", "api_keys": ["k2"], "model": "gpt-image-1.5"}


@pytest.fixture
def stack() -> FakeStack:
    made = FakeStack(FakeClock())
    push(made, GEMINI, OPENAI)
    return made


def push(stack: FakeStack, *endpoints: dict[str, Any]) -> None:
    stack.secret.text = json.dumps({"endpoints": endpoints})


def write(tmp_path: Path, *rows: str, header: str = "image_url,instruction") -> Path:
    path = tmp_path / "p.csv"
    path.write_text("\n".join((header, *rows)) + "\n")
    return path


def quote(stack: FakeStack, *arguments: object) -> dict[str, Any]:
    result = run(stack, "quote", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_rows_are_told_apart_and_the_bad_ones_named(stack: FakeStack, tmp_path: Path) -> None:
    file = write(tmp_path, "https://h/a.png,warm", "https://h/b.png,", ",new", "https://h/c.png,x")
    told = quote(stack, file, "--filter-rows", "0:3")
    assert (told["rows"], told["to_do"], told["skipped"]) == (4, 2, 1)
    assert told["invalid"] == 1
    assert [group["first_rows"] for group in told["invalid_reasons"]] == [[1]]
    shown = run(stack, "quote", file)
    assert "rows: 4: 3 to do, 1 invalid" in shown.stdout
    assert "row 1: column instruction: it is empty" in shown.stderr


def test_a_quote_starts_nothing(stack: FakeStack, tmp_path: Path) -> None:
    quote(stack, write(tmp_path, "https://h/a.png,warm"))
    assert stack.inputs.puts == []


def test_cost_lies_between_the_cheapest_first_choice_and_the_dearest_of_all(
    stack: FakeStack, tmp_path: Path
) -> None:
    told = quote(stack, write(tmp_path, *["https://h/a.png,warm"] * 10))
    one = find_model(Provider.GEMINI, "gemini-2.5-flash-image").image_prices["1K"] / 1e6
    dearest = max(find_model(Provider.OPENAI, "gpt-image-1.5").image_prices.values()) / 1e6
    assert told["cost_usd"]["least"] == pytest.approx(10 * one)
    assert told["cost_usd"]["most"] > 10 * dearest
    assert told["pictures"] == 10


def test_quality_that_is_fixed_narrows_the_range(stack: FakeStack, tmp_path: Path) -> None:
    push(stack, OPENAI)
    file = write(tmp_path, ",a fox")
    free, low = quote(stack, file), quote(stack, file, "--quality", "low")
    assert low["cost_usd"]["least"] == free["cost_usd"]["least"]
    assert low["cost_usd"]["most"] < free["cost_usd"]["most"] / 5


def test_an_unknown_price_is_counted_and_not_taken_for_nothing(
    stack: FakeStack, tmp_path: Path
) -> None:
    push(stack, OPENAI | {"model": "house-brand-1"})
    file = write(tmp_path, ",a fox", ",a hen")
    assert quote(stack, file)["unpriced_rows"] == 2
    assert "2 rows of unknown price" in run(stack, "quote", file).stdout


def test_the_configured_pace_gives_the_time(stack: FakeStack, tmp_path: Path) -> None:
    push(stack, GEMINI | {"requests_per_minute": 10, "max_in_flight": 0}, OPENAI)
    told = quote(stack, write(tmp_path, *[",a fox"] * 100), "--call-seconds", 1)
    assert 600 <= told["seconds"] <= 640  # 10 a minute, less the margin for clocks
    assert told["calls"] == {"g": 100}


def test_two_endpoints_of_a_tier_share_the_work_by_their_limits(
    stack: FakeStack, tmp_path: Path
) -> None:
    fast = GEMINI | {"name": "fast", "requests_per_minute": 30, "max_in_flight": 0}
    slow = GEMINI | {"name": "slow", "requests_per_minute": 10, "max_in_flight": 0}
    push(stack, fast, slow)
    told = quote(stack, write(tmp_path, *[",a fox"] * 400), "--call-seconds", 1)
    assert told["calls"] == {"fast": 300, "slow": 100}
    assert 600 <= told["seconds"] <= 640


@pytest.mark.parametrize(
    ("limits", "workers", "seconds"),
    [
        ({"requests_per_minute": 0, "max_in_flight": 4}, 16, 500),
        ({"requests_per_minute": 0, "max_in_flight": 0}, 8, 260),  # 13 rounds
        ({"requests_per_minute": 0, "max_in_flight": 0, "requests_per_day": 40}, 16, 2 * 86_400),
    ],
    ids=["in flight", "workers", "per day"],
)
def test_the_tightest_bound_decides(
    stack: FakeStack, tmp_path: Path, limits: dict[str, int], workers: int, seconds: float
) -> None:
    stack.workers = workers
    push(stack, GEMINI | limits)
    told = quote(stack, write(tmp_path, *[",a fox"] * 100), "--call-seconds", 20)
    assert told["seconds"] == pytest.approx(seconds, rel=0.01)


def test_a_job_takes_no_less_than_a_call_and_the_last_rows_turn(
    stack: FakeStack, tmp_path: Path
) -> None:
    push(stack, GEMINI | {"requests_per_minute": 10})
    told = quote(stack, write(tmp_path, *[",a fox"] * 2), "--call-seconds", 20)
    assert 26 <= told["seconds"] <= 27


def test_a_job_longer_than_the_queue_keeps_rows_is_warned_of(
    stack: FakeStack, tmp_path: Path
) -> None:
    push(stack, GEMINI | {"requests_per_day": 5})
    file = write(tmp_path, *[",a fox"] * 100)
    assert quote(stack, file)["exceeds_retention"] is True
    assert "The queue keeps rows for 14 d" in run(stack, "quote", file).stderr


def test_a_row_that_no_endpoint_can_take_is_told_with_the_reasons(
    stack: FakeStack, tmp_path: Path
) -> None:
    push(stack, GEMINI)
    file = write(tmp_path, "https://h/a.png,x,https://h/m.png", header="image,prompt,mask_url")
    told = quote(stack, file)
    assert told["to_do"] == 0
    assert (
        told["impossible_reasons"][0]["detail"] == "gemini-2.5-flash-image does not support masks"
    )


def test_a_row_only_the_second_tier_can_take_is_priced_there(
    stack: FakeStack, tmp_path: Path
) -> None:
    file = write(tmp_path, "https://h/a.png,x,https://h/m.png", header="image,prompt,mask_url")
    assert quote(stack, file)["calls"] == {"o": 1}


def test_what_a_model_will_change_is_told_beforehand(stack: FakeStack, tmp_path: Path) -> None:
    file = write(tmp_path, ",a fox", ",a hen")
    result = run(stack, "quote", file, "--resolution", "4K")
    assert "gemini-2.5-flash-image has no resolution 4K" in result.stderr
    assert "(2 rows)" in result.stderr


def test_without_endpoints_there_is_no_quote(stack: FakeStack, tmp_path: Path) -> None:
    stack.secret.text = None
    result = run(stack, "quote", write(tmp_path, ",a fox"))
    assert result.exit_code == 1
    assert "darkroom endpoints push" in result.stderr


def test_a_fallback_that_costs_more_is_told_apart_from_what_is_expected(
    stack: FakeStack, tmp_path: Path
) -> None:
    file = write(tmp_path, *["https://h/a.png,warm"] * 10)
    cost = quote(stack, file)["cost_usd"]
    assert cost["least"] < cost["expected_most"] < cost["most"]
    assert "if rows fall back" in run(stack, "quote", file).stdout
    push(stack, GEMINI)
    alone = quote(stack, file)["cost_usd"]
    assert alone["most"] == alone["expected_most"] == cost["expected_most"]
    assert "fall back" not in run(stack, "quote", file).stdout


@pytest.mark.parametrize("words", ["warm", "wärmer, bitte", "x" * 2_000])
def test_the_most_a_row_may_cost_is_what_its_plan_reserves(
    stack: FakeStack, tmp_path: Path, words: str
) -> None:
    push(stack, GEMINI)
    # Rows that differ in words only are planned once: the first one's words must not count twice.
    file = write(tmp_path, f'"","{words}"', ',"the second row"')
    rows = [RowRequest(instruction=words), RowRequest(instruction="the second row")]
    plans = [plan_call(r, (), None, Provider.GEMINI, str(GEMINI["model"])) for r in rows]
    reserved = sum(plan.worst_cost_micro_usd or 0 for plan in plans)
    assert quote(stack, file)["cost_usd"]["most"] * 1e6 == pytest.approx(reserved, abs=2)


def test_an_instruction_too_long_for_one_model_does_not_hide_the_others(
    stack: FakeStack, tmp_path: Path
) -> None:
    push(stack, OPENAI | {"model": "dall-e-3"})
    file = write(tmp_path, ",short", f",{'x' * 4_001}", ",short again")
    told = quote(stack, file)
    assert (told["to_do"], told["impossible"]) == (2, 1)
    assert told["impossible_reasons"][0]["first_rows"] == [1]


def test_reasons_are_grouped_whatever_the_rows_wrote(stack: FakeStack, tmp_path: Path) -> None:
    rows = [f",a fox,1:{10 + i}" for i in range(500)] + [",,1:1"]
    file = write(tmp_path, *rows, header="image_url,instruction,aspect_ratio")
    ratio, empty = quote(stack, file)["invalid_reasons"]
    assert (ratio["rows"], ratio["first_rows"]) == (500, [0, 1, 2, 3, 4])
    assert "1:10" in ratio["detail"]
    assert (empty["rows"], empty["first_rows"]) == (1, [500])
    assert "500 rows, such as row 0: column aspect_ratio" in run(stack, "quote", file).stderr


def test_reasons_without_end_are_bounded() -> None:
    failures = Failures()
    for row in range(10_000):
        failures.add(row, f"reason {chr(0x4E00 + row % 5_000)}")
    assert failures.count == sum(g.count for g in failures.groups.values()) == 10_000
    assert len(failures.groups) <= MOST_GROUPS + 1


def test_rows_beyond_a_day_go_to_the_next_tier(stack: FakeStack, tmp_path: Path) -> None:
    push(stack, GEMINI | {"requests_per_day": 30}, OPENAI)
    file = write(tmp_path, *[",a fox"] * 100)
    told = quote(stack, file)
    assert told["calls"] == {"g": 30, "o": 70}
    assert told["beyond_a_day"] == {"g": 70}
    assert told["seconds"] < 86_400
    assert "70 rows beyond the 30 requests a day of g" in run(stack, "quote", file).stderr


def test_rows_beyond_the_last_tiers_day_wait_for_the_next(stack: FakeStack, tmp_path: Path) -> None:
    push(stack, GEMINI | {"requests_per_day": 30})
    file = write(tmp_path, *[",a fox"] * 100)
    assert quote(stack, file)["seconds"] > 3 * 86_400
    assert "wait for the days after" in run(stack, "quote", file).stderr


def test_endpoints_of_a_file_need_no_stack(stack: FakeStack, tmp_path: Path) -> None:
    stack.secret.text, stack.workers = None, None
    endpoints = tmp_path / "endpoints.json"
    endpoints.write_text(json.dumps({"endpoints": [GEMINI]}))
    told = quote(stack, write(tmp_path, ",a fox"), "--endpoints", endpoints, "--workers", 2)
    assert (told["calls"], told["workers"]) == ({"g": 1}, 2)
    assert quote(stack, tmp_path / "p.csv", "--endpoints", endpoints)["workers"] == 16


def test_an_unknown_price_names_its_model(stack: FakeStack, tmp_path: Path) -> None:
    push(stack, OPENAI | {"model": "house-brand-1"})
    assert quote(stack, write(tmp_path, ",a fox"))["unpriced_models"] == ["house-brand-1"]
