"""`darkroom doctor`: whether a deployed stack works, without changing or spending anything.

With `row` one text-only row goes through all of it, which costs one image.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import typer

from darkroom.endpoints import EndpointsSecret
from darkroom.formatting import plural
from darkroom_cli.endpoints import load_current
from darkroom_cli.error_messages import CommandFailed, describe_error
from darkroom_cli.session import Session
from darkroom_cli.submit import Upload, submit

# Each event makes its function import its code, read its settings and end: nothing is in it, or it
# names what does not exist.
_HARMLESS_EVENTS: dict[str, dict[str, object]] = {
    "splitter": {"Records": []},
    "editor": {"Records": []},
    "submitter": {"Records": []},
    "collector": {"batch": "darkroom doctor"},
    "reporter": {"job": "darkroom doctor"},
}
_ROW = "image_url,instruction\n,A plain grey square\n"


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    ok: bool
    detail: str


def doctor(session: Session, *, row: bool) -> None:
    findings = list(_findings(session))
    if session.json:
        session.print_json([{"check": f.check, "ok": f.ok, "detail": f.detail} for f in findings])
    else:
        cells = ((("ok" if f.ok else "FAILED"), f.check, f.detail) for f in findings)
        session.print_table(("result", "check", "detail"), cells, right=(), folded="detail")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)
    if row:
        _edit_one_row(session)


def _findings(session: Session) -> Iterator[Finding]:
    stack = session.stack
    yield _checked("outputs", lambda: f"stack {stack.name}, bucket {stack.outputs.InputBucketName}")
    yield _checked("secret", lambda: _describe(load_current(session)))
    yield _checked("ledger", lambda: _readable(stack.ledger.current("darkroom doctor")))
    yield _checked("endpoints table", lambda: _readable(stack.endpoint_states.read("doctor")))
    yield _checked("rows queue", lambda: stack.queue_state("editor"))
    yield _checked("batch rows queue", lambda: stack.queue_state("submitter"))
    yield _checked("dead letters", lambda: plural(stack.dead_letters.count(), "message"))
    for name, event in _HARMLESS_EVENTS.items():
        yield _checked(f"{name} function", partial(stack.invoke, name, event))


def _checked(check: str, look: Callable[[], str]) -> Finding:
    """`look` returns the detail, or raises what is wrong."""
    try:
        return Finding(check, True, look())
    except Exception as error:  # noqa: BLE001 - every error of AWS is a finding
        return Finding(check, False, describe_error(error))


def _readable(_record: object) -> str:
    return "readable"


def _describe(secret: EndpointsSecret) -> str:
    names = [endpoint.name for tier in secret.tiers() for endpoint in tier]
    return f"{plural(len(names), 'endpoint')}: {', '.join(names)}"


def _edit_one_row(session: Session) -> None:
    """Raises CommandFailed unless the row succeeds."""
    started = datetime.fromtimestamp(session.clock.now(), UTC)
    with tempfile.TemporaryDirectory(prefix="darkroom-") as folder:
        csv = Path(folder) / f"{started:%Y%m%dT%H%M%SZ}.csv"
        csv.write_text(_ROW, encoding="utf-8")
        progress = submit(session, Upload(csv, "doctor", {}, wait=True, every=2.0))
    if progress is None or progress.succeeded != 1:
        raise CommandFailed(
            f"The row did not succeed: `darkroom failures doctor/{csv.stem}` says why."
        )
