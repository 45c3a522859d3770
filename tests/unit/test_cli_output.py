"""What the command prints on a terminal: texts from outside cannot control it."""

import io
import json
from collections.abc import Callable

import pytest
from rich.console import Console

from darkroom_cli.options import Target
from darkroom_cli.session import Session, Wiring

# Clears the screen, sets the title, is Rich markup, a C1 control, reversed writing, a surrogate.
HOSTILE = "\x1b[2J\x1b]0;owned\x07[/red][bold]:bomb:\x9b31m\u202egnp.exe\udc80\rhidden"


def _on_a_terminal() -> tuple[Session, io.StringIO]:
    session, printed = Session(Target(), json=False, wiring=Wiring()), io.StringIO()
    session.out = session.err = Console(
        file=printed, force_terminal=True, color_system=None, width=300, emoji=False
    )
    return session, printed


def _table(session: Session) -> None:
    session.print_table(("job", "rows"), [(HOSTILE, "1")], right=("rows",), folded="job")


def _bar(session: Session) -> None:
    with session.progress_bar(HOSTILE, 2) as advance:
        advance()


def _spinner(session: Session) -> None:
    with session.spinner(HOSTILE) as announce:
        announce(HOSTILE)


@pytest.mark.parametrize(
    "show",
    [
        _table,
        _bar,
        _spinner,
        lambda s: s.print_fields([("job", HOSTILE)]),
        lambda s: s.print_result(HOSTILE, {}),
        lambda s: s.note(HOSTILE),
        lambda s: s.warn(HOSTILE),
    ],
    ids=["table", "bar", "spinner", "fields", "result", "note", "warning"],
)
def test_a_text_from_outside_cannot_control_the_terminal(show: Callable[[Session], None]) -> None:
    session, printed = _on_a_terminal()
    show(session)
    text = printed.getvalue()
    assert "\x1b[2J" not in text
    assert not set("\x07\x9b\u202e\udc80") & set(text)
    assert "[/red][bold]:bomb:" in text


def test_json_escapes_what_a_terminal_would_act_on(capsys: pytest.CaptureFixture[str]) -> None:
    session, _ = _on_a_terminal()
    session.print_json({"job": HOSTILE, "name": "Größe"})
    printed = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in printed)
    assert json.loads(printed) == {"job": HOSTILE, "name": "Größe"}


def test_lines_for_pipes_hold_one_row_each(capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(Target(), json=False, wiring=Wiring())
    session.print_table(("job", "rows"), [("a\nb\tc", "1")], right=("rows",), folded="job")
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\t1\n"
