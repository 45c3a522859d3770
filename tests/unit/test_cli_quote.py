"""`darkroom quote`: what a job costs and how long it takes, before it starts."""

import json
from datetime import date
from typing import Any

import pytest

from darkroom.endpoints import Endpoint
from darkroom.models.catalog import find_model
from darkroom.models.planner import plan_call
from darkroom.providers.registry import Provider
from darkroom.rows import RowRequest
from darkroom_cli.estimate import MAX_GROUPS, FailureGroups
from tests.fakes.command import CliHarness

GEMINI = {"name": "g", "provider": "gemini", "api_keys": ["k1"], "model": "gemini-2.5-flash-image"}
OPENAI = {"name": "o", "provider": "openai", "api_keys": ["k2"], "model": "gpt-image-1.5"}


@pytest.fixture
def cli(cli: CliHarness) -> CliHarness:
    cli.push_endpoints(GEMINI, OPENAI)
    return cli


def test_rows_are_counted_by_kind_and_invalid_ones_named(cli: CliHarness) -> None:
    file = cli.csv("https://h/a.png,warm", "https://h/b.png,", ",new", "https://h/c.png,x")
    quoted = cli.json("quote", file, "--filter-rows", "0:3")
    assert (quoted["rows"], quoted["to_do"], quoted["skipped"]) == (4, 2, 1)
    assert quoted["invalid"] == 1
    assert [group["first_rows"] for group in quoted["invalid_reasons"]] == [[1]]
    shown = cli.run("quote", file)
    assert "rows: 4: 3 to do, 1 invalid" in shown.stdout
    assert "row 1: column instruction: it is empty" in shown.stderr
    assert cli.input_bucket.puts == []  # a quote starts nothing


def test_cost_ranges_from_the_cheapest_to_the_most_expensive_endpoint(cli: CliHarness) -> None:
    quoted = cli.json("quote", cli.csv(*["https://h/a.png,warm"] * 10))
    one = find_model(Provider.GEMINI, "gemini-2.5-flash-image").image_prices["1K"] / 1e6
    most_expensive = max(find_model(Provider.OPENAI, "gpt-image-1.5").image_prices.values()) / 1e6
    assert quoted["cost_usd"]["least"] == pytest.approx(10 * one)
    assert quoted["cost_usd"]["most"] > 10 * most_expensive
    assert quoted["images"] == 10


def test_a_fixed_quality_narrows_the_range(cli: CliHarness) -> None:
    cli.push_endpoints(OPENAI)
    file = cli.csv(",a fox")
    free, low = cli.json("quote", file), cli.json("quote", file, "--quality", "low")
    assert low["cost_usd"]["least"] == free["cost_usd"]["least"]
    assert low["cost_usd"]["most"] < free["cost_usd"]["most"] / 5


def test_rows_of_unknown_price_are_counted_apart_and_their_models_named(cli: CliHarness) -> None:
    cli.push_endpoints(OPENAI | {"model": "house-brand-1"})
    file = cli.csv(",a fox", ",a hen")
    quoted = cli.json("quote", file)
    assert (quoted["unpriced_rows"], quoted["unpriced_models"]) == (2, ["house-brand-1"])
    assert "2 rows of unknown price" in cli.succeed("quote", file).stdout


FAST = GEMINI | {"name": "fast", "requests_per_minute": 30, "max_in_flight": 0}
SLOW = GEMINI | {"name": "slow", "requests_per_minute": 10, "max_in_flight": 0}


@pytest.mark.parametrize(
    ("endpoints", "calls"),
    [((SLOW, OPENAI), {"slow": 100}), ((FAST, SLOW), {"fast": 300, "slow": 100})],
)
def test_the_endpoints_of_a_tier_share_its_rows_and_decide_the_time_by_their_rates(
    cli: CliHarness, endpoints: tuple[dict[str, Any], ...], calls: dict[str, int]
) -> None:
    cli.push_endpoints(*endpoints)
    quoted = cli.json("quote", cli.csv(*[",a fox"] * sum(calls.values())), "--call-seconds", 1)
    assert quoted["calls"] == calls
    assert 600 <= quoted["seconds"] <= 640  # 10 a minute, less the safety margin


@pytest.mark.parametrize(
    ("limits", "workers", "seconds"),
    [
        ({"requests_per_minute": 0, "max_in_flight": 4}, 16, 500),
        ({"requests_per_minute": 0, "max_in_flight": 0}, 8, 260),  # 13 rounds
        ({"requests_per_minute": 0, "max_in_flight": 0, "requests_per_day": 40}, 16, 2 * 86_400),
    ],
    ids=["in flight", "workers", "per day"],
)
def test_the_tightest_limit_decides_the_time(
    cli: CliHarness, limits: dict[str, int], workers: int, seconds: float
) -> None:
    cli.workers = workers
    cli.push_endpoints(GEMINI | limits)
    quoted = cli.json("quote", cli.csv(*[",a fox"] * 100), "--call-seconds", 20)
    assert quoted["seconds"] == pytest.approx(seconds, rel=0.01)


def test_the_time_includes_the_wait_for_the_last_slot_and_its_call(cli: CliHarness) -> None:
    cli.push_endpoints(GEMINI | {"requests_per_minute": 10})
    quoted = cli.json("quote", cli.csv(*[",a fox"] * 2), "--call-seconds", 20)
    assert 26 <= quoted["seconds"] <= 27


def test_a_job_that_outlasts_the_queues_retention_gets_a_warning(cli: CliHarness) -> None:
    cli.push_endpoints(GEMINI | {"requests_per_day": 5})
    file = cli.csv(*[",a fox"] * 100)
    assert cli.json("quote", file)["exceeds_retention"] is True
    assert "The queue keeps rows for 14 d" in cli.run("quote", file).stderr


def test_rows_of_a_mask_are_priced_where_it_is_supported_or_listed_as_impossible(
    cli: CliHarness,
) -> None:
    file = cli.csv("https://h/a.png,x,https://h/m.png", header="image,prompt,mask_url")
    assert cli.json("quote", file)["calls"] == {"o": 1}
    cli.push_endpoints(GEMINI)
    quoted = cli.json("quote", file)
    assert quoted["to_do"] == 0
    (group,) = quoted["impossible_reasons"]
    assert group["detail"] == "gemini-2.5-flash-image does not support masks"


def test_settings_that_a_model_will_change_get_a_warning(cli: CliHarness) -> None:
    file = cli.csv(",a fox", ",a hen")
    result = cli.run("quote", file, "--resolution", "4K")
    assert "gemini-2.5-flash-image has no resolution 4K" in result.stderr
    assert "(2 rows)" in result.stderr


def test_a_fallback_that_costs_more_is_shown_apart_from_the_expected_cost(cli: CliHarness) -> None:
    file = cli.csv(*["https://h/a.png,warm"] * 10)
    cost = cli.json("quote", file)["cost_usd"]
    assert cost["least"] < cost["expected_most"] < cost["most"]
    assert "if rows fall back" in cli.run("quote", file).stdout
    cli.push_endpoints(GEMINI)
    alone = cli.json("quote", file)["cost_usd"]
    assert alone["most"] == alone["expected_most"] == cost["expected_most"]
    assert "fall back" not in cli.run("quote", file).stdout


@pytest.mark.parametrize("instruction", ["warm", "wärmer, bitte", "x" * 2_000])
def test_the_maximum_cost_is_what_the_plans_reserve(cli: CliHarness, instruction: str) -> None:
    cli.push_endpoints(GEMINI)
    # Rows that differ only in their instruction are planned once: it must not count twice.
    file = cli.csv(f'"","{instruction}"', ',"the second row"')
    rows = [RowRequest(instruction=instruction), RowRequest(instruction="the second row")]
    endpoint = Endpoint.model_validate(GEMINI)
    plans = [plan_call(row, (), None, endpoint, date(1970, 1, 1)) for row in rows]
    reserved = sum(plan.worst_cost_micro_usd or 0 for plan in plans)
    assert cli.json("quote", file)["cost_usd"]["most"] * 1e6 == pytest.approx(reserved, abs=2)


def test_an_instruction_that_is_too_long_excludes_only_its_own_row(cli: CliHarness) -> None:
    cli.push_endpoints(OPENAI | {"model": "dall-e-3"})
    file = cli.csv(",short", f",{'x' * 4_001}", ",short again")
    quoted = cli.json("quote", file)
    assert (quoted["to_do"], quoted["impossible"]) == (2, 1)
    assert quoted["impossible_reasons"][0]["first_rows"] == [1]


def test_rows_that_fail_alike_are_grouped_whatever_their_values(cli: CliHarness) -> None:
    rows = [f",a fox,1:{10 + i}" for i in range(500)] + [",,1:1"]
    file = cli.csv(*rows, header="image_url,instruction,aspect_ratio")
    ratio, empty = cli.json("quote", file)["invalid_reasons"]
    assert (ratio["rows"], ratio["first_rows"]) == (500, [0, 1, 2, 3, 4])
    assert "1:10" in ratio["detail"]
    assert (empty["rows"], empty["first_rows"]) == (1, [500])
    assert "500 rows, such as row 0: column aspect_ratio" in cli.run("quote", file).stderr


def test_the_number_of_failure_groups_is_bounded() -> None:
    failures = FailureGroups()
    for row in range(10_000):
        failures.add(row, f"reason {chr(0x4E00 + row % 5_000)}")
    assert failures.count == sum(g.rows for g in failures.groups.values()) == 10_000
    assert len(failures.groups) <= MAX_GROUPS + 1


def test_rows_beyond_a_daily_limit_go_to_the_next_tier_or_wait(cli: CliHarness) -> None:
    cli.push_endpoints(GEMINI | {"requests_per_day": 30}, OPENAI)
    file = cli.csv(*[",a fox"] * 100)
    quoted = cli.json("quote", file)
    assert quoted["calls"] == {"g": 30, "o": 70}
    assert quoted["beyond_a_day"] == {"g": 70}
    assert quoted["seconds"] < 86_400
    assert "70 rows beyond the 30 requests a day of g" in cli.run("quote", file).stderr
    cli.push_endpoints(GEMINI | {"requests_per_day": 30})
    assert cli.json("quote", file)["seconds"] > 3 * 86_400
    assert "wait for the following days" in cli.run("quote", file).stderr


def test_a_quote_needs_endpoints_of_a_stack_or_of_a_file(cli: CliHarness) -> None:
    cli.secret, cli.workers = None, None
    file = cli.csv(",a fox")
    assert "darkroom endpoints push" in cli.error("quote", file)
    endpoints = cli.write("endpoints.json", json.dumps({"endpoints": [GEMINI]}))
    quoted = cli.json("quote", file, "--endpoints", endpoints, "--workers", 2)
    assert (quoted["calls"], quoted["workers"]) == ({"g": 1}, 2)
    assert cli.json("quote", file, "--endpoints", endpoints)["workers"] == 16
