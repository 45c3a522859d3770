"""The message to the jobs topic: one when a job is reported, one more when it is made again."""

from darkroom.formatting import duration
from darkroom.report.summary import JobSummary

_LONGEST_SUBJECT = 100  # SNS: at most 100 ASCII characters, no line breaks


def message(summary: JobSummary) -> tuple[str, str]:
    """Subject and body."""
    again = f" (report made again, {summary.revision})" if summary.revision > 1 else ""
    subject = f"Darkroom: {_headline(summary)}{again} - {summary.job}"
    lines = [f"Job {summary.job}: {summary.state}{again}.", ""]
    lines += [summary.reason or "", ""] if summary.state == "failed" else _figures(summary)
    lines += [f"{label}: {key}" for label, key in _keys(summary)]
    return _subject(subject), "\n".join(lines) + "\n"


def _headline(summary: JobSummary) -> str:
    if summary.state == "failed":
        return "file rejected"
    counts = summary.counts
    bad = counts.failed + counts.dead
    return f"{counts.succeeded:,} of {counts.rows:,} rows succeeded" + (
        f", {bad:,} did not" if bad else ""
    )


def _figures(summary: JobSummary) -> list[str]:
    counts, cost = summary.counts, summary.cost
    lines = [
        f"Rows: {counts.rows:,}",
        f"Succeeded: {counts.succeeded:,} ({counts.resumed:,} of them in an earlier upload)",
        f"Failed: {counts.failed:,}",
        f"Dead: {counts.dead:,}" + (" (in the dead-letter queue)" if counts.dead else ""),
        f"Skipped: {counts.skipped:,}",
        f"Cost of this upload: ${cost.this_run_usd:,.4f}"
        + (f" without {cost.unpriced_rows:,} unpriced rows" if cost.unpriced_rows else ""),
        f"Made by fallback: {summary.fallback.rate:.1%}",
        f"Possible duplicate charges: {summary.possible_duplicate_charges:,}",
        f"Took: {duration(summary.duration_seconds)}",
        "",
    ]
    if summary.errors:
        lines += [f"{e.rows:,} {e.status}, {e.reason}: {e.what_to_do}" for e in summary.errors]
        lines.append("")
    return lines


def _keys(summary: JobSummary) -> list[tuple[str, str]]:
    results = summary.results
    pages = len(results.pages)
    gallery = results.report + (f" and {pages - 1} more pages" if pages > 1 else "")
    named = [("Gallery", gallery)]
    if results.manifest:
        named.append(("Manifest", results.manifest))
    named.append(("Images", results.images))
    return [(f"{label} (in the results bucket)", key) for label, key in named]


def _subject(text: str) -> str:
    plain = "".join(c if " " <= c <= "~" else "?" for c in text)
    return plain if len(plain) <= _LONGEST_SUBJECT else plain[: _LONGEST_SUBJECT - 3] + "..."
