"""`submit`, `quote` and trials of jobs whose rows go in batches, or in the flex tier."""

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.command import CliHarness
from tests.unit.test_cli_trial import edit_all

GEMINI = {"name": "g", "provider": "gemini", "api_keys": ["k1"], "model": "gemini-3-pro-image"}
OPENAI = {"name": "o", "provider": "openai", "api_keys": ["k2"], "model": "gpt-image-1.5"}
AZURE = OPENAI | {
    "name": "azure",
    "base_url": "https://h.openai.azure.com/openai",
    "api_version": "2025-04-01-preview",
}


@pytest.fixture
def cli(cli: CliHarness) -> CliHarness:
    cli.push_endpoints(GEMINI)
    return cli


@pytest.fixture
def ten(cli: CliHarness) -> Path:
    return cli.csv(*(f"https://h/{row}.png,make it warm" for row in range(10)))


def metadata(cli: CliHarness, key: str = "jobs/p.csv") -> dict[str, str]:
    return cli.input_bucket.objects[key].metadata


def test_batch_is_an_option_of_the_upload(cli: CliHarness, ten: Path) -> None:
    cli.succeed("submit", ten, "--batch", "--batch-fallback", "batch")
    assert metadata(cli) == {"mode": "batch", "batch-fallback": "batch"}
    cli.succeed("submit", ten, "--batch", "--mode", "batch")
    assert metadata(cli) == {"mode": "batch"}


@pytest.mark.parametrize("subcommand", ["submit", "quote"])
def test_batch_with_another_mode_is_refused(cli: CliHarness, ten: Path, subcommand: str) -> None:
    error = cli.error(subcommand, ten, "--batch", "--mode", "flex", exit_code=2)
    assert "--batch and --mode flex contradict each other" in error
    assert cli.input_bucket.puts == []


def test_a_quote_shows_price_and_time_of_live_calls_and_of_batches(
    cli: CliHarness, ten: Path
) -> None:
    quoted = cli.json("quote", ten)
    live, batch = quoted["modes"]["live"], quoted["modes"]["batch"]
    assert (quoted["mode"], quoted["cost_usd"]) == ("live", live["cost_usd"])
    assert batch["cost_usd"]["least"] == pytest.approx(live["cost_usd"]["least"] / 2)
    assert batch["cost_usd"]["expected_most"] == pytest.approx(
        live["cost_usd"]["expected_most"] / 2, rel=0.001
    )
    assert (batch["seconds"], batch["to_do"]) == (86_400, 10)
    assert live["seconds"] < 3_600
    shown = cli.succeed("quote", ten).stdout
    assert "cost: $1.34" in shown
    assert "with --batch: $0.67" in shown
    assert "within 24 hours" in shown


def test_the_quote_of_a_batch_job_shows_the_live_price_beside_its_own(
    cli: CliHarness, ten: Path
) -> None:
    shown = cli.succeed("quote", ten, "--batch").stdout
    assert "cost: $0.67" in shown
    assert "time: within 24 hours" in shown
    assert "with --mode live: $1.34" in shown
    assert "endpoint: g: 10 requests in batches" in shown
    quoted = cli.json("quote", ten, "--batch")
    assert (quoted["requests"], quoted["calls"]) == ({"g": 10}, {})


def test_rows_without_an_answer_may_cost_the_live_price_unless_they_stay_in_batches(
    cli: CliHarness, ten: Path
) -> None:
    live = cli.json("quote", ten)["cost_usd"]
    falls_back = cli.json("quote", ten, "--batch")["cost_usd"]
    assert falls_back["most"] == pytest.approx(live["most"])
    stays = cli.json("quote", ten, "--batch", "--batch-fallback", "batch")["cost_usd"]
    assert stays["most"] == stays["expected_most"] < live["most"] * 0.51


def test_a_budget_is_compared_with_the_price_of_the_mode(cli: CliHarness, ten: Path) -> None:
    budget = cli.json("quote", ten)["cost_usd"]["expected_most"] * 0.6
    assert cli.json("quote", ten, "--budget-usd", budget)["within_budget"] == 6
    assert cli.json("quote", ten, "--budget-usd", budget, "--batch")["within_budget"] == 10


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        (AZURE, "azure is an Azure deployment"),
        (OPENAI | {"model": "dall-e-2"}, "dall-e-2 is not offered in batches"),
    ],
)
def test_a_secret_whose_endpoints_offer_no_batches_is_said_with_the_reason(
    cli: CliHarness, endpoint: dict[str, Any], reason: str
) -> None:
    cli.push_endpoints(endpoint)
    file = cli.csv(",a fox")
    assert f"with --batch: not offered: {reason}" in cli.succeed("quote", file).stdout
    chosen = cli.succeed("quote", file, "--batch")
    assert "Rows that cannot be in a batch, edited live at the full price:" in chosen.stderr
    assert reason in chosen.stderr
    assert cli.json("quote", file, "--batch")["cost_usd"] == cli.json("quote", file)["cost_usd"]


def test_rows_too_large_for_a_batch_are_live_or_impossible_as_batch_fallback_says(
    cli: CliHarness,
) -> None:
    cli.push_endpoints(OPENAI | {"quality": "low"})
    file = cli.csv(",a fox,1", ",a hen,5", header="image_url,instruction,n")
    live = cli.json("quote", file)
    quoted = cli.json("quote", file, "--batch")
    assert (quoted["requests"], quoted["calls"]) == ({"o": 1}, {"o": 1})
    (group,) = quoted["modes"]["batch"]["not_batched_reasons"]
    assert (group["first_rows"], quoted["impossible"]) == ([1], 0)
    assert "at most 4 images" in group["detail"]
    assert quoted["cost_usd"]["least"] == pytest.approx(live["cost_usd"]["least"] * 5.5 / 6)
    assert "1 row of these live, at the full price" in cli.succeed("quote", file).stdout
    stays = cli.json("quote", file, "--batch", "--batch-fallback", "batch")
    assert (stays["impossible"], stays["to_do"]) == (1, 1)


def test_batches_are_shared_by_weight_whatever_the_limits_of_calls(
    cli: CliHarness, ten: Path
) -> None:
    cli.push_endpoints(
        GEMINI | {"requests_per_day": 1, "requests_per_minute": 1, "weight": 4},
        GEMINI | {"name": "h", "api_keys": ["k9"]},
    )
    quoted = cli.json("quote", ten, "--batch")
    assert quoted["requests"] == {"g": 8, "h": 2}
    assert quoted["beyond_a_day"] == {}


def test_flex_is_quoted_at_its_price_where_the_model_has_it(cli: CliHarness, ten: Path) -> None:
    cli.push_endpoints(GEMINI, OPENAI | {"tier": 2})
    live = cli.json("quote", ten)["cost_usd"]
    flex = cli.json("quote", ten, "--mode", "flex")
    assert flex["cost_usd"]["least"] == pytest.approx(live["least"] / 2)
    assert flex["calls"] == {"g": 10}
    assert flex["call_seconds"] == 480
    cli.push_endpoints(OPENAI)
    assert cli.json("quote", ten, "--mode", "flex")["impossible"] == 10


def test_a_trial_of_a_batch_job_is_live_and_the_rest_goes_in_batches(
    cli: CliHarness, ten: Path
) -> None:
    modes = []

    def work() -> None:
        if cli.ledger.jobs.get("jobs/p") is None:
            modes.append(metadata(cli)["mode"])
            edit_all(cli, "jobs/p.csv")

    cli.clock.on_sleep = work
    result = cli.succeed("submit", ten, "--batch", "--try", 2, "--yes")
    assert modes == ["live"]
    assert metadata(cli) == {"mode": "batch"}
    assert "The rows to try are edited live, at the full price" in result.stderr
    assert "the rest: 8 rows in batches: $0.5376 to" in result.stdout
    # 8 rows at half of the $0.134 that each of the two has cost
    assert "$0.536 at the price of those tried less the discount" in result.stdout
