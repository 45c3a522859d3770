"""`darkroom quote`: what a job costs and how long it takes, before it starts."""

import json
from datetime import UTC, date, datetime
from typing import Any

import pytest

from darkroom.endpoints import Endpoint
from darkroom.errors import Reason
from darkroom.models.catalog import find_model
from darkroom.models.planner import plan_call
from darkroom.providers.registry import Provider
from darkroom.rows import Claim, RowRequest, RowResult, RowState
from darkroom_cli.estimate import MAX_GROUPS, FailureGroups
from tests.fakes.command import CliHarness
from tests.fakes.editing import row_message
from tests.fakes.ledger import running

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
    assert "line 3 (row 1): column instruction: it is empty" in shown.stderr
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
    assert "500 rows, such as line 2 (row 0): column aspect_ratio" in cli.run("quote", file).stderr


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
    assert cli.json("quote", file, "--endpoints", endpoints)["workers"] == 40


# --- this upload: what an earlier one did, its images, its budget ---------------------------------

INDEXED = "index,image_url,instruction"


def settle(cli: CliHarness, status: RowState, **request: object) -> None:
    """An earlier upload of jobs/p.csv, whose row `a` ended with that status."""
    run = cli.ledger.start(running("jobs/p", run="r1"), 60)
    assert run is not None
    message = row_message("r1", "0", job="jobs/p", instruction="warm", **request)
    claim = cli.ledger.claim(message.model_copy(update={"key": "a"}), run, "worker", 60)
    assert isinstance(claim, Claim)
    assert cli.ledger.settle(claim, RowResult(status=status, reason=Reason.REFUSED))


def test_rows_that_an_earlier_upload_did_are_not_quoted_again(cli: CliHarness) -> None:
    settle(cli, RowState.SUCCEEDED)
    file = cli.csv("a,,warm", "b,,new", header=INDEXED)
    quoted = cli.json("quote", file)
    assert (quoted["rows"], quoted["kept"], quoted["to_do"]) == (2, 1, 1)
    assert quoted["calls"] == {"g": 1}
    assert "1 done in an earlier upload, not paid for again" in cli.run("quote", file).stdout
    for again in (["--no-resume"], ["--to", "other"], ["--aspect-ratio", "1:1"]):
        assert cli.json("quote", file, *again)["kept"] == 0


def test_rows_that_failed_before_are_quoted_with_retry_failed(cli: CliHarness) -> None:
    settle(cli, RowState.FAILED)
    file = cli.csv("a,,warm", "b,,new", header=INDEXED)
    quoted = cli.json("quote", file)
    assert (quoted["kept"], quoted["kept_failed"]) == (0, 1)
    assert "failed in an earlier upload" in cli.run("quote", file).stdout
    assert cli.json("quote", file, "--retry-failed")["kept"] == 0


def test_images_that_cannot_be_uploaded_are_counted_before_anything_starts(
    cli: CliHarness,
) -> None:
    cli.image("here.png")
    cli.write("text.png", "not an image")
    rows = ["here.png,x", "gone.png,x", "gone.png,y", "text.png,x", "/no/such.png,x"]
    file = cli.csv(*rows, "http://h/a.png,x")
    quoted = cli.json("quote", file)
    assert [name.split("'")[-2] if "'" in name else name for name in quoted["images_missing"]] == [
        "gone.png",
        "/no/such.png",
        "text.png",
    ]
    warnings = cli.run("quote", file).stderr
    assert (
        "3 images cannot be uploaded from here: 'gone.png', '/no/such.png', 'text.png' is not an"
        in warnings
    )
    assert "1 row with an image at http://" in warnings


@pytest.mark.parametrize(("budget", "rows"), [("100", 10), ("0.20", None), ("0", 0)])
def test_a_budget_is_compared_with_what_the_workers_reserve(
    cli: CliHarness, budget: str, rows: int | None
) -> None:
    cli.push_endpoints(GEMINI)
    file = cli.csv(*[",a fox"] * 10)
    plan = plan_call(
        RowRequest(instruction="a fox"), (), None, Endpoint.model_validate(GEMINI), date(1970, 1, 1)
    )
    each = (plan.worst_cost_micro_usd or 0) / 1e6
    expected = int(float(budget) / each) if rows is None else rows
    quoted = cli.json("quote", file, "--budget-usd", budget)
    assert quoted["within_budget"] == expected
    shown = cli.run("quote", file, "--budget-usd", budget).stdout
    assert ("enough for all rows" in shown) == (rows == 10)


def test_a_wide_range_is_explained_by_the_quality_left_open(cli: CliHarness) -> None:
    cli.push_endpoints(OPENAI | {"model": "gpt-image-2"})
    file = cli.csv(*["https://h/a.png,warm"] * 12)
    open_range, narrow = cli.json("quote", file), cli.json("quote", file, "--quality", "medium")
    assert open_range["open_quality_rows"] == 12
    assert "12 rows of the CSV leave the quality to the provider: --quality medium" in (
        cli.run("quote", file).stderr
    )
    spread = [q["cost_usd"]["expected_most"] / q["cost_usd"]["least"] for q in (open_range, narrow)]
    assert spread[0] > 20
    assert spread[1] < 4
    assert "narrows" not in cli.run("quote", file, "--quality", "medium").stderr
    cli.push_endpoints(OPENAI | {"model": "gpt-image-2", "quality": "medium"})
    assert cli.json("quote", file)["open_quality_rows"] == 0


def test_the_least_cost_of_a_free_size_is_the_cheapest_of_its_quality(cli: CliHarness) -> None:
    """A 4K image of gpt-image-2 costs more than a megapixel, but less than eight of them."""
    cli.push_endpoints(OPENAI | {"model": "gpt-image-2"})
    file = cli.csv(",a fox", header="image_url,instruction")
    size = ["--resolution", "4K", "--aspect-ratio", "16:9", "--quality", "high"]
    cost = cli.json("quote", file, *size)["cost_usd"]
    assert cost["least"] == 0.165
    assert cost["expected_most"] > 7 * 0.211


def test_the_end_of_the_fallbacks_model_is_quoted_too(cli: CliHarness) -> None:
    cli.clock.time = datetime(2026, 11, 21, tzinfo=UTC).timestamp()
    cli.push_endpoints({**GEMINI, "model": "gemini-3-pro-image"}, OPENAI)
    warnings = cli.run("quote", cli.csv(",a fox")).stderr
    assert "o: gpt-image-1.5 will be shut down by OpenAI on 2026-12-01" in warnings


def test_limits_by_image_lengthen_a_job_and_a_drained_endpoint_gets_no_row(
    cli: CliHarness,
) -> None:
    fast = GEMINI | {"requests_per_minute": 0, "max_in_flight": 0}
    file = cli.csv(*[f'"{"|".join(["https://h/a.png"] * 3)}",x'] * 100)
    cli.push_endpoints(fast | {"input_images_per_minute": 30})
    assert cli.json("quote", file)["seconds"] == pytest.approx(10 * 60, rel=0.05)
    cli.push_endpoints(fast | {"name": "old", "weight": 0}, fast)
    assert cli.json("quote", file)["calls"] == {"g": 100}
