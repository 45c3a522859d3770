"""`darkroom compare`: the rows of several jobs side by side, on one page."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from darkroom.errors import Reason
from darkroom.report.manifest import ManifestFormat
from darkroom.report.rows import ReportRow
from darkroom.rows import RowResult, RowState
from tests.fakes.command import CliHarness, FakeObject
from tests.fakes.ledger import running

COLUMNS = ("image_url", "instruction")
GOOD = RowResult(
    RowState.SUCCEEDED, model="gemini-3-pro-image", cost_micro_usd=134_000, latency_ms=9_000
)
REFUSED = RowResult(
    *(RowState.FAILED, Reason.REFUSED, "It shows <script>alert(1)</script>"),
    model="gpt-image-2",
    cost_micro_usd=0,
)


def add_results(
    cli: CliHarness,
    job: str,
    results: Sequence[tuple[int, RowResult]],
    cells: tuple[str, str] | None = None,
) -> None:
    """What the reporter and the editor leave in the results bucket."""
    manifest = ManifestFormat(COLUMNS)
    lines = [manifest.header()]
    for row, result in results:
        key = f"{row:06d}"
        outputs = (f"{job}/images/{key}.png",) if result.status is RowState.SUCCEEDED else ()
        for path in (*outputs, f"{job}/thumbs/{key}.png-before.webp"):
            cli.results_bucket.objects[path] = FakeObject(path.encode())
        own = cells or (f"photos/{row}.jpg", "Make it <b>warm</b>")
        shown = ReportRow(row, key, replace(result, outputs=outputs), own)
        lines.append(manifest.line(shown))
    cli.results_bucket.objects[f"{job}/manifest.csv"] = FakeObject(b"".join(lines))


@pytest.fixture
def cli(cli: CliHarness) -> CliHarness:
    for job, results in (
        ("jobs/p.gemini", [(0, GOOD), (5, GOOD)]),
        (
            "jobs/p.gpt",
            [(0, replace(GOOD, model="gpt-image-2", cost_micro_usd=None)), (5, REFUSED)],
        ),
    ):
        cli.ledger.start(running(job, run=job), 60)
        add_results(cli, job, results)
    return cli


def test_before_is_the_first_preview_that_there_is(cli: CliHarness, out: Path) -> None:
    del cli.results_bucket.objects["jobs/p.gemini/thumbs/000000.png-before.webp"]
    cli.succeed("compare", "jobs/p.gemini", "jobs/p.gpt", "--to", out)
    shown = re.findall(r'<img src="([^"]+)" alt="Before', (out / "compare.html").read_text())
    names = ("gpt/thumbs/000000.png-before.webp", "gemini/thumbs/000005.png-before.webp")
    assert shown == [f"jobs/p.{name}" for name in names]


@pytest.fixture
def out(cli: CliHarness) -> Path:
    return cli.folder / "out"


def test_rows_of_jobs_stand_side_by_side_with_price_time_and_outcome(
    cli: CliHarness, out: Path
) -> None:
    printed = cli.succeed("compare", "p.gemini", "jobs/p.gpt", "--to", out).stdout
    assert printed.strip() == str(out / "compare.html")
    page = (out / "compare.html").read_text()
    assert page.count("<tr id=") == 2
    assert "2 of 2 succeeded · $0.268 · $0.134 each · median 9.0 s" in page
    assert "1 of 2 succeeded" in page
    assert "gemini-3-pro-image · $0.134 · 9 s" in page
    assert "price not known" in page
    assert re.search(r'<b class="failed">failed</b>: refused', page)
    for path in re.findall(r'src="([^"]+)"', page):
        assert (out / path).is_file()


def test_texts_of_rows_stay_text(cli: CliHarness, out: Path) -> None:
    cli.succeed("compare", "jobs/p.gemini", "jobs/p.gpt", "--to", out)
    page = (out / "compare.html").read_text()
    assert "<script" not in page
    assert "<b>warm" not in page
    assert "Make it &lt;b&gt;warm&lt;/b&gt;" in page
    assert "default-src 'none'" in page


def test_neither_access_nor_reordered_names_are_shown(cli: CliHarness, out: Path) -> None:
    url = "https://x.test/photo\u202egpj.exe?X-Amz-Signature=5ec2e7"
    add_results(cli, "jobs/p.gemini", [(0, GOOD)], (url, f"Like {url}"))
    cli.succeed("compare", "jobs/p.gemini", "jobs/p.gpt", "--to", out)
    page = (out / "compare.html").read_text()
    assert "5ec2e7" not in page
    assert "\u202e" not in page
    assert page.count("https://x.test/photo\N{REPLACEMENT CHARACTER}gpj.exe?…") > 2


def test_json_has_the_totals_of_each_job(cli: CliHarness, out: Path) -> None:
    compared = cli.json("compare", "jobs/p.gemini", "jobs/p.gpt", "--to", out)
    assert [job["succeeded"] for job in compared["jobs"]] == [2, 1]
    assert compared["jobs"][0]["cost_usd"] == pytest.approx(0.268)


def test_a_job_that_lacks_a_row_shows_so(cli: CliHarness, out: Path) -> None:
    add_results(cli, "jobs/p.gpt", [(0, GOOD)])
    cli.succeed("compare", "jobs/p.gemini", "jobs/p.gpt", "--to", out)
    assert "Not in this job" in (out / "compare.html").read_text()


def test_rows_outside_the_trial_are_left_out(cli: CliHarness, out: Path) -> None:
    add_results(cli, "jobs/p.gemini", [(0, GOOD), (1, RowResult(RowState.SKIPPED))])
    compared = cli.json("compare", "jobs/p.gemini", "jobs/p.gemini", "--to", out)
    assert compared["jobs"][0]["rows"] == 1


def test_what_cannot_be_compared_is_said_in_a_sentence(cli: CliHarness, out: Path) -> None:
    assert "at least two" in cli.error("compare", "jobs/p.gemini", exit_code=2)
    assert "has no job jobs/x" in cli.error("compare", "jobs/x", "jobs/p.gpt")
    cli.ledger.start(running("../../evil", run="e"), 60)
    assert "--to" in cli.error("compare", "../../evil", "jobs/p.gpt", "--to", out)
    assert not out.exists()


def test_a_comparison_of_a_whole_job_is_refused(cli: CliHarness, out: Path) -> None:
    add_results(cli, "jobs/p.gpt", [(row, GOOD) for row in range(501)])
    result = cli.run("compare", "jobs/p.gemini", "jobs/p.gpt", "--to", out)
    assert "more than 500 rows" in result.stderr
