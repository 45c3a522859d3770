"""`darkroom submit --try`: edits a few rows first, shows the price of the rest, and asks."""

from array import array
from collections.abc import Mapping
from dataclasses import replace

import typer

from darkroom.csv_input.reader import JobRows
from darkroom.errors import RowRejected
from darkroom.formatting import money, plural
from darkroom.jobs import RunState
from darkroom.rows import Mode
from darkroom_cli.compare import compare
from darkroom_cli.download import open_gallery
from darkroom_cli.endpoints import load_current
from darkroom_cli.error_messages import UsageMistake
from darkroom_cli.estimate import Estimate, Throughput, estimate
from darkroom_cli.local_files import open_csv
from darkroom_cli.session import Session
from darkroom_cli.status import Progress
from darkroom_cli.submit import Upload, submit

_FEWEST_COMPARED = 2
_CALL_SECONDS = 20.0  # has no effect on the price


def submit_trial(session: Session, upload: Upload, *, count: int) -> Progress | None:
    """Submit `count` rows spread over the CSV and, on consent, the rest as the same job.

    The rows tried are not edited again: the job resumes. Without a terminal and `upload.assume_yes`
    the command ends after them.
    """
    rows = open_csv(upload.path, upload.options)
    with session.spinner("Reading the CSV"):
        selected = _rows_to_do(rows)
    tried = _spread(selected, count)
    if not tried or len(tried) == len(selected):
        return submit(session, upload)
    options = _live(session, upload.options) | {"filter_rows": ",".join(map(str, tried))}
    progress = submit(session, replace(upload, options=options, wait=True))
    if progress is None or progress.state is not RunState.DONE:
        return progress
    mode = rows.options.mode
    with session.spinner("Estimating the rest"):
        rest = estimate(
            (row for row in rows if row.row not in tried),
            load_current(session),
            Throughput(_CALL_SECONDS),
            session.today,
            options=rows.options,
            modes=dict.fromkeys((mode, _mode_of_trial(mode))),
        )
    if session.shows_progress:
        open_gallery(session, progress.job, None, session.wiring.launch)
    _show_price(session, progress, rest[mode], rest[_mode_of_trial(mode)], len(tried))
    if upload.assume_yes or _confirmed(session, rest[mode].to_do):
        return submit(session, replace(upload, assume_yes=True))
    session.note(
        "Nothing else was started. To edit the rest, submit again without --try: rows that are "
        "done are kept and not paid for again."
    )
    return progress


def submit_comparison(session: Session, upload: Upload, *, count: int, models: str) -> None:
    """Submit `count` rows as one job for each of the models, then show them side by side.

    `models` separates names by commas. No job falls back to another model.
    """
    names = dict.fromkeys(name.strip() for name in models.split(",") if name.strip())
    if len(names) < _FEWEST_COMPARED:
        raise UsageMistake("--compare needs at least two models, separated by a comma.")
    rows = open_csv(upload.path, upload.options)
    with session.spinner("Reading the CSV"):
        tried = _spread(_rows_to_do(rows), count)
    jobs, base = [], _live(session, upload.options)
    for name in names:
        chosen = {"filter_rows": ",".join(map(str, tried)), "model": name, "fallback": False}
        options = base | chosen
        progress = submit(session, replace(upload, options=options, label=name, wait=True))
        if progress is not None:
            jobs.append(progress.job)
    compare(session, jobs, None)


def _mode_of_trial(mode: Mode) -> Mode:
    """Nobody waits a day for a trial."""
    return "live" if mode == "batch" else mode


def _live(session: Session, options: Mapping[str, object]) -> dict[str, object]:
    """The options of a trial."""
    if options.get("mode") != "batch":
        return {**options}
    session.note("The rows to try are edited live, at the full price; the rest goes in batches.")
    return {**options, "mode": "live"}


def _rows_to_do(rows: JobRows) -> array[int]:
    return array(
        "Q", (r.row for r in rows if not r.skipped and not isinstance(r.request, RowRejected))
    )


def _spread(rows: array[int], count: int) -> list[int]:
    """`count` of the rows at equal distances, with the first and the last."""
    last = len(rows) - 1
    places = {round(i * last / max(count - 1, 1)) for i in range(min(count, len(rows)))}
    return [rows[place] for place in sorted(places)]


def _show_price(
    session: Session, progress: Progress, rest: Estimate, as_tried: Estimate, tried: int
) -> None:
    """`as_tried` is the estimate of the rest in the mode of those tried."""
    cost = progress.cost_usd
    factor = rest.expected_most / as_tried.expected_most if as_tried.expected_most else 1.0
    by_trial = cost / tried * rest.to_do * factor
    if session.json:
        session.print_json(
            {"job": progress.job, "tried": tried, "cost_usd": cost, "rest": rest.to_do}
            | {"rest_mode": rest.mode, "rest_by_trial_usd": by_trial}
            | {"rest_least_usd": rest.least / 1e6, "rest_most_usd": rest.expected_most / 1e6}
        )
        return
    batches = " in batches" if rest.requests else ""
    price = (
        f"{plural(rest.to_do, 'row')}{batches}: {rest.price} by the price list, "
        f"{money(by_trial)} at the price of those tried{' less the discount' if batches else ''}"
    )
    session.print_fields(
        [("tried", f"{plural(tried, 'row')} for {money(cost)}"), ("the rest", price)]
    )


def _confirmed(session: Session, rest: int) -> bool:
    if not session.is_interactive:
        return False
    return typer.confirm(f"Edit the other {plural(rest, 'row')}?", err=True)
