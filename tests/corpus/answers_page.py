"""Writes the table of answers in docs/providers.md: `python -m tests.corpus.answers_page`.

What follows an answer is observed: the real dispatcher, with the answer's failure at its first
endpoint and an image at the second.
"""

import sys
from pathlib import Path

from darkroom.calls import CallFailed, Outcome
from darkroom.errors import RowRejected
from tests.corpus.answers import Answer, answers, outcome_of, sources
from tests.fakes.dispatching import DispatchHarness, gemini, openai

PAGE = Path(__file__).parents[2] / "docs" / "providers.md"
START, END = "<!-- answers: start -->", "<!-- answers: end -->"
RETRIES = 2
_NAMES = {"gemini": "Gemini", "openai": "OpenAI and compatible", "azure": "Azure"}
_SHOWN = 200
_NOT_CONFIRMED = "not confirmed: "


def action(failed: CallFailed) -> str:
    """What the dispatcher does after this failure, in a few words."""
    harness = DispatchHarness(gemini(max_retries=RETRIES), openai())
    harness.editor.always["gemini"] = failed
    try:
        result = harness.dispatch()
    except RowRejected:
        return "one more call, then the row fails" if len(harness.editor.calls) > 1 else "row fails"
    if result.endpoint.name != "openai":
        raise AssertionError(f"an image of {result.endpoint.name} after {failed}")
    if failed.too_large_for_limit:
        return "another endpoint"
    if failed.outcome.key_at_fault:
        return "the key cools down; another key or endpoint"
    if failed.daily:
        return "out of service for the day; another endpoint"
    retried = "one retry" if failed.retries(RETRIES) < RETRIES else "retries"
    paused = "a pause, " if failed.outcome is Outcome.RATE_LIMITED else ""
    return f"{paused}{retried}, then another endpoint"


def table() -> str:
    """The page's part between the two marks."""
    shown = [a for a in answers() if a.source != "hostile" and a.outcome != "succeeded"]
    lines = []
    for provider, name in _NAMES.items():
        lines += [
            f"### {name}",
            "",
            "| Status | Answer | Reason | Then |",
            "| --- | --- | --- | --- |",
        ]
        lines += [_line(a) for a in shown if a.provider == provider] + [""]
    lines += ["### Sources of the answers", ""]
    used = dict.fromkeys(a.source for a in shown)
    confirmed = [k for k in used if not sources()[k].startswith(_NOT_CONFIRMED)]
    lines += [f"- {key}: {sources()[key]}" for key in confirmed]
    lines += [
        "",
        "Not confirmed by a stored page of the provider or a report of the whole body:",
        "",
    ]
    others = [k for k in used if k not in confirmed]
    lines += [f"- {key}: {sources()[key].removeprefix(_NOT_CONFIRMED)}" for key in others]
    return "\n".join(lines)


def _line(answer: Answer) -> str:
    made = outcome_of(answer.response(), answer.endpoint(), model_of_row=answer.model_of_row)
    if not isinstance(made, CallFailed):
        raise TypeError(f"an image out of {answer.shown}")
    notes = [
        note
        for note, holds in (
            ("the row's model", answer.model_of_row),
            ("flex", answer.flex),
            ("a day's", made.daily),
            ("maybe billed", made.maybe_charged),
        )
        if holds
    ]
    reason = made.outcome.value + (f" ({', '.join(notes)})" if notes else "")
    body = _summary(answer).replace("|", "\\|").replace("`", "'")
    return f"| {answer.status} | `{body}` {answer.source} | {reason} | {action(made)} |"


def _summary(answer: Answer) -> str:
    """The names and the message of an error, without what surrounds them."""
    body = answer.body[0] if isinstance(answer.body, list) else answer.body
    found = body if isinstance(body, dict) else {}
    if isinstance(error := found.get("error"), dict):
        named = [error.get(key) for key in ("status", "code", "type")]
        for detail in error.get("details", ()):
            violations = detail.get("violations", ())
            named += [detail.get("reason"), *(v.get("quotaId") for v in violations)]
        names = [str(n) for n in dict.fromkeys(named) if n is not None]
        return _short(f"{', '.join(names)}: {error['message']}")
    candidates = found.get("candidates")
    if isinstance(candidates, list):
        first = candidates[0]
        parts = first.get("content", {}).get("parts", ())
        texts = [first["finishReason"], first.get("finishMessage", "")]
        texts += [part.get("text", "") for part in parts]
        return _short(": ".join(filter(None, texts)))
    return answer.shown


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 2]} …"


def written(page: str) -> str:
    """The page with the table as it should be."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    sys.stdout.write(f"{PAGE}: written\n")
