"""A report's memory does not grow with the job; the full million is `make soak`'s."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAMBDA_SECONDS = 900


def report(*arguments: object) -> dict[str, float]:
    """Runs in a process of its own, so that its peak memory is the report's."""
    command = (sys.executable, "-m", "benchmarks.report_million", *map(str, arguments))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


def test_four_times_the_rows_take_no_more_memory() -> None:
    """Above 5,000 rows: up to that number the gallery shows all rows."""
    small, large = report(6_000), report(24_000)
    assert large["manifest_lines"] == 24_000
    assert large["peak_rss_mb"] <= small["peak_rss_mb"] + 15


def test_a_report_of_several_invocations_takes_no_more_memory_either() -> None:
    simulated = report("--simulate", 24_000, 10)
    assert simulated["invocations"] >= 3
    assert simulated["manifest_lines"] == 24_000
    assert simulated["peak_rss_mb"] <= report(6_000)["peak_rss_mb"] + 15


@pytest.mark.soak
@pytest.mark.parametrize(("options", "read_units"), [(["--by-index"], 0.2), ([], 1.0)])
def test_a_million_rows_are_reported_within_300_mb_and_a_lambdas_time(
    options: list[str], read_units: float
) -> None:
    measured = report(*options, 1_000_000)
    assert measured["manifest_lines"] == 1_000_000
    assert measured["peak_rss_mb"] < 300
    assert measured["seconds"] < LAMBDA_SECONDS
    assert measured["read_units_per_row"] <= read_units
    assert measured["waits_for_capacity"] == 0


@pytest.mark.soak
def test_ten_million_rows_are_reported_in_bounded_memory_and_within_the_limits() -> None:
    simulated = report("--simulate", 10_000_000, 3_000)
    assert simulated["manifest_lines"] == 10_000_000
    assert simulated["peak_rss_mb"] < 300
    assert simulated["waits_for_capacity"] == 0
