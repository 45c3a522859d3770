"""One run of a subcommand: its stack, its output, and how errors end it."""

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import typer

from darkroom.formatting import printable
from darkroom_cli.error_messages import UsageMistake, describe_error
from darkroom_cli.options import JOB_OPTIONS, AsJson, Target

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from darkroom.ports import Clock
    from darkroom_cli.stack import Stack

# Rich, boto3 and pydantic are imported where they are used: --help and completion stay fast.
# ruff: noqa: PLC0415


def _connect(target: Target) -> "Stack":
    from darkroom_cli.aws import AwsStack

    return AwsStack(target)


def _system_clock() -> "Clock":
    from darkroom.ports import SystemClock

    return SystemClock()


@dataclass(frozen=True, slots=True)
class Wiring:
    """What tests replace, by passing another one as typer's `obj`."""

    connect: "Callable[[Target], Stack]" = _connect
    clock: "Clock" = field(default_factory=_system_clock)
    launch: Callable[[str], object] = typer.launch  # opens a URL in the browser


def _console(is_terminal: bool, *, stderr: bool = False) -> "Console":
    from rich.console import Console

    # An ARN contains `:secret:`, which Rich would print as an emoji.
    return Console(stderr=stderr, soft_wrap=not is_terminal, highlight=False, emoji=False)


def _text(text: str, style: str = "") -> "Text":
    """Any text as it may be printed: names, cells and answers come from outside this machine.

    No control character reaches the terminal, and nothing is read as Rich markup.
    """
    from rich.text import Text

    return Text(printable(text, keep="\n"), style)


def _json_escape(character: str) -> str:
    return json.dumps(character)[1:-1]


@dataclass
class Session:
    """One run of a subcommand: results go to standard output, everything else to standard error."""

    target: Target
    json: bool
    wiring: Wiring

    @cached_property
    def stack(self) -> "Stack":
        return self.wiring.connect(self.target)

    @property
    def clock(self) -> "Clock":
        return self.wiring.clock

    @property
    def today(self) -> date:
        """In UTC."""
        return datetime.fromtimestamp(self.clock.now(), UTC).date()

    @cached_property
    def out(self) -> "Console":
        return _console(sys.stdout.isatty())

    @cached_property
    def err(self) -> "Console":
        return _console(sys.stderr.isatty(), stderr=True)

    @property
    def shows_progress(self) -> bool:
        """False for scripts and where standard error is not a terminal."""
        return not self.json and self.err.is_terminal

    @property
    def is_interactive(self) -> bool:
        """Somebody can be asked."""
        return not self.json and sys.stdin.isatty() and self.err.is_terminal

    def print_result(self, text: str, value: object) -> None:
        """The result: `text` for people, or with --json `value` for scripts."""
        if self.json:
            self.print_json(value)
        else:
            self.print_text(text)

    def print_text(self, text: str) -> None:
        self.out.print(_text(text))

    def print_json(self, value: object) -> None:
        text = json.dumps(value, indent=2, ensure_ascii=False)
        # JSON itself escapes only the characters below U+0020.
        typer.echo("".join(c if c.isprintable() or c == "\n" else _json_escape(c) for c in text))

    def print_fields(self, fields: Iterable[tuple[str, str]]) -> None:
        """Names and values: aligned on a terminal, one `name: value` per line in a pipe."""
        from rich.table import Table

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        self._print_rows(table, fields, ": ")

    def print_table(
        self,
        columns: Sequence[str],
        rows: Iterable[tuple[str, ...]],
        *,
        right: Sequence[str],
        folded: str,
    ) -> None:
        """A table on a terminal, tab-separated lines without a header in a pipe.

        The columns `right` are aligned right; the column `folded` breaks anywhere.
        """
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in columns:
            table.add_column(
                name,
                justify="right" if name in right else "left",
                overflow="fold" if name == folded else "ellipsis",
            )
        self._print_rows(table, rows, "\t")

    def _print_rows(self, table: "Table", rows: Iterable[tuple[str, ...]], separator: str) -> None:
        for row in rows:
            if self.out.is_terminal:
                table.add_row(*map(_text, row))
            else:
                typer.echo(separator.join(map(printable, row)))
        if self.out.is_terminal:
            self.out.print(table)

    def note(self, text: str) -> None:
        if not self.json:
            self.err.print(_text(text, style="dim"))

    def warn(self, text: str) -> None:
        self.err.print(_text(f"Warning: {text}", style="yellow"))

    @contextmanager
    def progress_bar(self, label: str, total: int | None) -> Iterator[Callable[[], None]]:
        """Yields the function to call once per finished item."""
        if not self.shows_progress:
            yield lambda: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        label_column = TextColumn("{task.description}", markup=False)
        columns = (label_column, BarColumn(bar_width=30), MofNCompleteColumn())
        with Progress(*columns, console=self.err, transient=True) as bar:
            task = bar.add_task(printable(label), total=total)
            yield lambda: bar.advance(task)

    def run_parallel[T](
        self, label: str, function: Callable[[T], None], items: Sequence[T]
    ) -> None:
        """Call `function` for each item, in threads and with a progress bar.

        The first error cancels the calls that have not begun.
        """
        from concurrent.futures import ThreadPoolExecutor, as_completed

        from darkroom_cli.stack import PARALLEL_TRANSFERS

        pool = ThreadPoolExecutor(PARALLEL_TRANSFERS)
        try:
            with self.progress_bar(label, len(items)) as advance:
                for done in as_completed([pool.submit(function, item) for item in items]):
                    done.result()
                    advance()
        finally:
            pool.shutdown(cancel_futures=True)

    @contextmanager
    def spinner(self, label: str) -> Iterator[Callable[[str], None]]:
        """For work of unknown length. Yields the function that announces its next step."""
        if not self.shows_progress:
            yield self.note
            return
        with self.err.status(_text(label)) as status:
            yield lambda text: status.update(_text(text))


@contextmanager
def _error_messages(session: Session) -> Iterator[None]:
    """Replaces tracebacks by a sentence and an exit code."""
    try:
        yield
    # typer handles these: a closed pipe ends quietly, a question without an answer with "Aborted."
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        session.err.print(_text("Interrupted."))
        raise typer.Exit(130) from None
    except Exception as error:
        if os.environ.get("DARKROOM_DEBUG"):
            raise
        session.err.print(_text(f"Error: {describe_error(error)}"))
        raise typer.Exit(2 if isinstance(error, UsageMistake) else 1) from None


def with_session(run: Callable[..., None]) -> Callable[..., None]:
    """Makes `run(session, ...)` a typer command with the shared options.

    A function with `**options` gets the job options in them, under SubmitCommand or QuoteCommand.
    """

    def command(ctx: typer.Context, as_json: AsJson = False, **values: Any) -> None:
        chosen = Target(**{name: values.pop(name) for name in target})
        session = Session(chosen, as_json, ctx.obj or Wiring())
        with _error_messages(session):
            run(session, **values, **ctx.meta.get(JOB_OPTIONS, {}))

    shared = inspect.signature(command).parameters
    target = inspect.signature(Target).parameters
    _session, *own = inspect.signature(run, eval_str=True).parameters.values()
    kind = shared["as_json"].kind  # a signature has its keyword-only parameters last
    parameters = [p.replace(kind=kind) for p in own if p.kind is not inspect.Parameter.VAR_KEYWORD]
    functools.update_wrapper(command, run)
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # read by inspect.signature
        [shared["ctx"], *parameters, shared["as_json"], *target.values()]
    )
    return command
