"""`darkroom submit --try`: a few rows first, then the price of the rest."""

from dataclasses import replace
from pathlib import Path

import pytest

from darkroom.csv_input.fields import parse_options
from darkroom.csv_input.values import parse_row_filter
from darkroom.jobs import Source, Totals, job_id
from darkroom.rows import Claim, RowResult, RowState
from tests.fakes.command import CliHarness
from tests.fakes.editing import row_message
from tests.fakes.ledger import running
from tests.unit.test_cli_compare import add_results

ENDPOINT = {"name": "g", "provider": "gemini", "api_keys": ["k"], "model": "gemini-3-pro-image"}
GOOD = RowResult(RowState.SUCCEEDED, endpoint="g", cost_micro_usd=134_000)


@pytest.fixture
def cli(cli: CliHarness) -> CliHarness:
    """A stack whose workers edit everything that is uploaded, while the command waits."""
    cli.push_endpoints(ENDPOINT)

    def work() -> None:
        for key in set(cli.input_bucket.puts):
            current = cli.ledger.current(job_id(key))
            if cli.input_bucket.puts.count(key) > (current.number if current else 0):
                edit_all(cli, key)

    cli.clock.on_sleep = work
    return cli


def edit_all(cli: CliHarness, upload: str) -> None:
    job, uploads = job_id(upload), len(cli.input_bucket.puts)
    options = parse_options(cli.input_bucket.objects[upload].metadata)
    source = Source("in", upload, f"v{uploads}")
    run = cli.ledger.start(running(job, run=f"run-{uploads}", source=source, options=options), 60)
    assert run is not None
    wanted = parse_row_filter(options.filter_rows or ":")
    keys = [f"{row:06d}" for row in range(12) if row in wanted]
    queued = [key for key in keys if key not in cli.ledger.get_many(job, keys)]
    resumed = len(keys) - len(queued)
    totals = Totals(12, queued=len(queued), resumed=resumed, skipped=12 - len(keys))
    cli.ledger.finish_split(run, totals, [])
    result = replace(GOOD, model=options.model)
    for key in queued:
        claim = cli.ledger.claim(row_message(run.run, key, job=job), run, key, 60)
        assert isinstance(claim, Claim)
        assert cli.ledger.settle(claim, result)
    assert cli.ledger.begin_report(run, 60)
    assert cli.ledger.finish_report(run, cli.clock.now())
    add_results(cli, job, [(int(key), result) for key in queued])


@pytest.fixture
def twelve(cli: CliHarness) -> Path:
    return cli.csv(*(f"https://h/{row}.png,make it warm" for row in range(12)))


def test_a_comparison_is_a_job_for_each_model_without_fallback(
    cli: CliHarness, twelve: Path
) -> None:
    models = "gemini-3-pro-image, gpt-image-2"
    out = cli.succeed("submit", twelve, "--try", 2, "--compare", models).stdout
    assert cli.input_bucket.puts == ["jobs/p.gemini-3-pro-image.csv", "jobs/p.gpt-image-2.csv"]
    for key in cli.input_bucket.puts:
        options = parse_options(cli.input_bucket.objects[key].metadata)
        assert (options.filter_rows, options.fallback) == ("0,11", False)
        assert f"{options.model}.csv" in key
    assert out.strip().endswith("compare.html")
    page = Path(out.strip().splitlines()[-1]).read_text()
    assert "gemini-3-pro-image" in page
    assert "gpt-image-2" in page


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--compare", "a,b"), "--compare needs --try"),
        (("--try", 2, "--compare", "a"), "at least two models"),
        (("--try", 2, "--job", "jobs/p"), "leave it out with --job"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    cli: CliHarness, twelve: Path, arguments: tuple[object, ...], problem: str
) -> None:
    assert problem in cli.error("submit", twelve, *arguments, exit_code=2)
    assert cli.input_bucket.puts == []


def filters(cli: CliHarness) -> str | None:
    return cli.input_bucket.objects["jobs/p.csv"].metadata.get("filter-rows")


def test_a_trial_edits_rows_spread_over_the_file_and_stops_without_a_terminal(
    cli: CliHarness, twelve: Path
) -> None:
    result = cli.succeed("submit", twelve, "--try", 3)
    assert filters(cli) == "0,6,11"
    assert "tried: 3 rows for $0.40" in result.stdout
    assert "the rest: 9 rows: $" in result.stdout
    assert "$1.21 at the price of those tried" in result.stdout
    assert "submit again without --try" in result.stderr
    assert cli.input_bucket.puts == ["jobs/p.csv"]


def test_going_on_is_the_same_job_and_pays_only_for_the_rest(cli: CliHarness, twelve: Path) -> None:
    cli.succeed("submit", twelve, "--try", 3, "--yes", "--wait")
    assert cli.input_bucket.puts == ["jobs/p.csv", "jobs/p.csv"]
    assert filters(cli) is None
    run = cli.ledger.current_run("jobs/p")
    assert (run.totals.resumed, run.totals.queued) == (3, 9)


def test_a_trial_of_all_rows_is_a_plain_submit(cli: CliHarness, twelve: Path) -> None:
    result = cli.succeed("submit", twelve, "--try", 12)
    assert filters(cli) is None
    assert "tried" not in result.stdout


def test_a_trial_leaves_out_rows_that_cannot_work_and_those_outside_the_filter(
    cli: CliHarness,
) -> None:
    rows = [f"https://h/{row}.png,{'' if row in (4, 11) else 'warm'}" for row in range(12)]
    cli.succeed("submit", cli.csv(*rows), "--try", 2, "--filter-rows", "4:12")
    assert filters(cli) == "5,10"
