"""The notification to the jobs topic: one per report, so another one after a redrive."""

from darkroom.formatting import duration, money, plural, printable
from darkroom.report.summary import JobSummary, unsuccessful
from darkroom.rows import SETTLED_STATUSES

_MAX_SUBJECT_CHARS = 100  # SNS: at most 100 ASCII characters, no line breaks


def notification(summary: JobSummary) -> tuple[str, str]:
    """Subject and body."""
    counts, failed = summary.counts, unsuccessful(summary.counts)
    if summary.state == "failed":
        headline, figures = "file rejected", [summary.reason or "", ""]
    else:
        headline = f"{counts.succeeded:,} of {plural(counts.rows, 'row')} succeeded"
        headline += f", {failed:,} did not" if failed else ""
        figures = _figures(summary)
    again = f" (report made again, {summary.revision})" if summary.revision > 1 else ""
    subject = f"Darkroom: {headline}{again} - {summary.job}"
    lines = [f"Job {summary.job}: {summary.state}{again}.", "", *figures, *_result_keys(summary)]
    # Names and reasons come from outside: a line break in one must not add a line of its own.
    return _ascii_subject(subject), "\n".join(map(printable, lines)) + "\n"


def _figures(summary: JobSummary) -> list[str]:
    counts, cost = summary.counts, summary.cost
    notes = {
        "succeeded": f" ({counts.resumed:,} of them in an earlier upload)",
        "dead": " (in the dead-letter queue)" if counts.dead else "",
    }
    groups = [f"{e.rows:,} {e.status}, {e.reason}: {e.what_to_do}" for e in summary.errors]
    return [
        f"Rows: {counts.rows:,}",
        *(f"{s.capitalize()}: {getattr(counts, s):,}{notes.get(s, '')}" for s in SETTLED_STATUSES),
        f"Skipped: {counts.skipped:,}",
        f"Cost of this upload: {money(cost.this_run_usd)}"
        + (f" without {plural(cost.unpriced_rows, 'unpriced row')}" if cost.unpriced_rows else ""),
        f"Made by fallback: {summary.fallback.rate:.1%}",
        *([summary.fallback.note] if summary.fallback.note else []),
        f"Possible duplicate charges: {summary.possible_duplicate_charges:,}",
        f"Took: {duration(summary.duration_seconds)}",
        "",
        *([*groups, ""] if groups else []),
    ]


def _result_keys(summary: JobSummary) -> list[str]:
    results = summary.results
    more_pages = len(results.pages) - 1
    further = f" and {plural(more_pages, 'more page')}" if more_pages > 0 else ""
    keys = {
        "Gallery": results.report and f"{results.report}{further}",
        "Manifest": results.manifest,
        "Rows that failed": results.failed_rows,
        "Images": results.images,
    }
    return [f"{label} (in the results bucket): {key}" for label, key in keys.items() if key]


def _ascii_subject(text: str) -> str:
    plain = "".join(c if " " <= c <= "~" else "?" for c in text)
    if len(plain) <= _MAX_SUBJECT_CHARS:
        return plain
    return plain[: _MAX_SUBJECT_CHARS - 3] + "..."
