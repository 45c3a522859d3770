"""What every verb shares: the options that choose a stack, output, and errors as sentences."""

import functools
import inspect
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import typer

from darkroom_cli.options import (
    DEFAULT_STACK,
    EndpointOption,
    JsonOption,
    LocalOption,
    RegionOption,
    StackOption,
)
from darkroom_cli.sentences import UsageMistake, sentence_for

if TYPE_CHECKING:
    from rich.console import Console

    from darkroom_cli.ports import Stack


@dataclass(frozen=True, slots=True)
class Target:
    """Which stack a command talks to."""

    stack: str = DEFAULT_STACK
    endpoint_url: str | None = None
    region: str | None = None
    local: bool = False


def _connect(target: Target) -> "Stack":
    from darkroom_cli.aws import AwsStack  # noqa: PLC0415 - boto3 takes 0.2 s to import

    return AwsStack(target)


class SystemClock:
    """darkroom.ports.Clock on the machine's own clock."""

    def now(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Wiring:
    """The outside world; tests give another one as typer's `obj`."""

    connect: "Callable[[Target], Stack]" = _connect
    clock: Any = field(default_factory=SystemClock)


@dataclass
class Session:
    """One run of one verb."""

    target: Target
    json: bool
    wiring: Wiring

    @cached_property
    def stack(self) -> "Stack":
        return self.wiring.connect(self.target)

    @cached_property
    def out(self) -> "Console":
        """Where answers go."""
        from rich.console import Console  # noqa: PLC0415 - keeps --help fast

        return Console(soft_wrap=not sys.stdout.isatty(), highlight=False)

    @cached_property
    def err(self) -> "Console":
        """Where notes, warnings and progress go: never in the way of a pipe."""
        from rich.console import Console  # noqa: PLC0415

        return Console(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False)

    def answer(self, text: str, value: object) -> None:
        """The answer for a person, or with --json `value` for a script."""
        if self.json:
            self.print_json(value)
        else:
            self.out.print(text, markup=False)

    def print_json(self, value: object) -> None:
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))

    def plain(self, *cells: object) -> None:
        """A line for `cut` and `awk`."""
        typer.echo("\t".join(str(cell) for cell in cells))

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Names and values: aligned on a terminal, one per line in a pipe."""
        if not self.out.is_terminal:
            for name, value in facts:
                typer.echo(f"{name}: {value}")
            return
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in facts:
            table.add_row(name, Text(value))
        self.out.print(table)

    def note(self, text: str) -> None:
        if not self.json:
            self.err.print(text, markup=False, style="dim")

    def warn(self, text: str) -> None:
        self.err.print(f"Warning: {text}", markup=False, style="yellow")


def _option(name: str, annotation: object, default: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


_JSON = _option("as_json", JsonOption, default=False)
_COMMON = (
    _option("stack", StackOption, DEFAULT_STACK),
    _option("local", LocalOption, default=False),
    _option("endpoint_url", EndpointOption, None),
    _option("region", RegionOption, None),
)


def verb(run: Callable[..., None]) -> Callable[..., None]:
    """Give a verb `run(session, ...)` the shared options, and end it without a traceback."""
    own = list(inspect.signature(run, eval_str=True).parameters.values())[1:]
    context = inspect.Parameter(
        "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )

    @functools.wraps(run)
    def command(ctx: typer.Context, **given: Any) -> None:
        target = Target(
            stack=given.pop("stack"),
            endpoint_url=given.pop("endpoint_url"),
            region=given.pop("region"),
            local=given.pop("local"),
        )
        session = Session(target, given.pop("as_json"), ctx.obj or Wiring())
        try:
            run(session, **given)
        except (typer.Exit, BrokenPipeError):  # the reader of a pipe has seen enough: typer ends it
            raise
        except KeyboardInterrupt:
            typer.echo("Interrupted.", err=True)
            raise typer.Exit(130) from None
        except Exception as error:  # noqa: BLE001 - the outermost frame: nothing may pass it
            raise _ending(error) from None

    parameters = [context, *own, _JSON, *_COMMON]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _ending(error: Exception) -> typer.Exit:
    """Print the sentence for an error; its exit code."""
    if os.environ.get("DARKROOM_DEBUG"):
        raise error
    sentence = sentence_for(error)
    if sentence is None:
        sentence = (
            f"Unexpected {type(error).__name__}: this is a bug in darkroom; "
            "DARKROOM_DEBUG=1 shows where."
        )
    typer.echo(f"Error: {sentence}", err=True)
    return typer.Exit(2 if isinstance(error, UsageMistake) else 1)
