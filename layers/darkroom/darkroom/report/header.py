"""The top of the first page: what became of the job, in figures, a chart and next steps."""

from collections.abc import Sequence
from datetime import datetime

from darkroom.report import chart
from darkroom.report.cards import cost_text, seconds_text
from darkroom.report.html import Safe, tag
from darkroom.report.summary import EndpointSummary, ErrorClass, JobSummary


def heading(summary: JobSummary, number: int, last: int) -> Safe:
    source = f"s3://{summary.source.bucket}/{summary.source.key}"
    made = f"{summary.state} {when(summary.finished_at)}"
    if summary.revision > 1:
        made += f", report made again ({summary.revision})"
    where = f" · page {number} of {last}" if last > 1 else ""
    return tag(
        "header",
        tag("div", "Darkroom", class_="brand"),
        tag("h1", summary.job),
        tag("p", made[:1].upper() + made[1:], " · ", tag("code", source), where, class_="sub"),
    )


def tiles(summary: JobSummary) -> Safe:
    counts, cost = summary.counts, summary.cost
    shown = [
        _tile("Rows", f"{counts.rows:,}", _of(counts.skipped, "skipped")),
        _tile("Succeeded", f"{counts.succeeded:,}", _of(counts.resumed, "earlier"), "t-succeeded"),
    ]
    if counts.failed or not counts.dead:
        kind = "t-failed" if counts.failed else ""
        shown.append(_tile("Failed", f"{counts.failed:,}", _of(counts.kept_failed, "kept"), kind))
    if counts.dead:
        shown.append(_tile("Dead", f"{counts.dead:,}", "in the dead-letter queue", "t-dead"))
    earlier = f"{_money(cost.total_usd)} with earlier uploads" if cost.earlier_runs_usd else ""
    unpriced = f"without {cost.unpriced_rows:,} unpriced rows" if cost.unpriced_rows else ""
    shown.append(_tile("Cost", _money(cost.this_run_usd), earlier or unpriced))
    rate = f"{summary.fallback.rate:.1%}"
    shown.append(_tile("Fallback", rate, f"{summary.fallback.rows:,} rows"))
    shown.append(_tile("Took", duration_text(summary.duration_seconds), _pace(summary)))
    if summary.possible_duplicate_charges:
        twice = f"{summary.possible_duplicate_charges:,}"
        shown.append(_tile("Possible double charges", twice, "see the manifest", "t-failed"))
    return tag("dl", shown, class_="tiles")


def _tile(name: str, value: str, note: str = "", kind: str = "") -> Safe:
    small = tag("small", note) if note else None
    return tag("div", tag("dt", name), tag("dd", value, small), class_=f"tile {kind}".strip())


def _of(count: int, what: str) -> str:
    return f"{count:,} {what}" if count else ""


def _pace(summary: JobSummary) -> str:
    counts = summary.counts
    done = counts.succeeded - counts.resumed
    if not done or summary.duration_seconds <= 0:
        return ""
    return f"{done / summary.duration_seconds * 60:,.1f} a minute"


def _money(usd: float) -> str:
    return f"${usd:,.2f}" if usd == 0 or usd >= 1 else cost_text(round(usd * 1_000_000))


def panels(summary: JobSummary) -> Safe | None:
    both = [p for p in (_chart_panel(summary), _endpoint_panel(summary.endpoints)) if p]
    return tag("div", both, class_="split" if len(both) > 1 else None) if both else None


def _chart_panel(summary: JobSummary) -> Safe | None:
    timeline = summary.timeline
    if not timeline.bars:
        return None
    bars = [chart.Bar(b.start.timestamp(), b.succeeded, b.failed, b.dead) for b in timeline.bars]
    used = [s for s in ("succeeded", "failed", "dead") if any(getattr(b, s) for b in bars)]
    keys = [tag("span", s, class_=f"key k-{s}") for s in used]
    tallest = max(b.total for b in bars)
    axis = (
        tag("span", when(timeline.bars[0].start)),
        tag("span", f"up to {tallest:,} rows in {duration_text(timeline.bar_seconds)}"),
        tag("span", when(timeline.bars[-1].start)),
    )
    return tag(
        "section",
        tag("h2", "Outcomes over time", keys),
        chart.draw(bars, timeline.bar_seconds),
        tag("div", axis, class_="axis"),
        class_="panel",
    )


def _endpoint_panel(endpoints: Sequence[EndpointSummary]) -> Safe | None:
    if not endpoints:
        return None
    names = ("Endpoint", "Made", "Fallback", "Failed", "Cost", "Latency p50", "p95")
    head = tag("tr", (tag("th", n, class_="num" if i else None) for i, n in enumerate(names)))
    table = tag("table", tag("thead", head), tag("tbody", map(_endpoint_row, endpoints)))
    title = tag("h2", "Endpoints")
    # A region that scrolls must be reachable by keyboard.
    scroll = tag("div", table, class_="scroll", tabindex="0", role="group", aria_label="Endpoints")
    return tag("section", title, scroll, class_="panel")


def _endpoint_row(endpoint: EndpointSummary) -> Safe:
    p50, p95 = endpoint.latency_ms_p50, endpoint.latency_ms_p95
    cells = (
        f"{endpoint.succeeded:,}",
        f"{endpoint.fallback:,}",
        f"{endpoint.failed + endpoint.dead:,}",
        _money(endpoint.cost_usd),
        seconds_text(p50) if p50 else "",
        seconds_text(p95) if p95 else "",
    )
    return tag("tr", tag("td", endpoint.endpoint), (tag("td", c, class_="num") for c in cells))


def error_item(error: ErrorClass, links: Sequence[Safe]) -> Safe:
    title = (
        tag("span", f"{error.rows:,} {error.status}", class_=f"chip c-{error.status}"),
        " ",
        tag("b", error.reason.replace("_", " ")),
    )
    example = tag("p", f"Row {error.example_row}: {error.example_detail}", class_="why")
    listed: Safe | None = None
    if links:
        more = f" (the first {len(links)})" if len(links) < error.rows else ""
        listed = tag(
            "details",
            tag("summary", f"Show the rows{more}"),
            tag("div", ([link, " "] for link in links)),
            class_="rows",
        )
    hint = tag("p", error.what_to_do, class_="next")
    return tag("li", title, hint, example if error.example_detail else None, listed)


def when(moment: datetime) -> str:
    return f"{moment.day} {moment:%b %Y, %H:%M:%S} UTC"


def duration_text(seconds: float) -> str:
    """`4000` -> `1 h 6 min`."""
    whole = round(seconds)
    if whole < 1:
        return f"{seconds:.1f} s"
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left = divmod(rest, 60)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (left, "s"))
    told = [f"{count} {unit}" for count, unit in parts if count]
    return " ".join(told[:2])
