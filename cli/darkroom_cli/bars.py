"""Progress bars and spinners; silent where nobody watches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from darkroom_cli.session import Session


@contextmanager
def counting(session: Session, what: str, total: int | None) -> Iterator[Callable[[], None]]:
    """Yields the function to call once per thing done."""
    if session.json or not session.err.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn())
    with Progress(*columns, console=session.err, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def working(session: Session, what: str) -> Iterator[None]:
    """A spinner for work of unknown length."""
    if session.json or not session.err.is_terminal:
        yield
        return
    with session.err.status(what):
        yield
