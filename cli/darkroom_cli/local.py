"""`local`: the whole stack on this machine, from the checkout."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from darkroom_cli.options import DEFAULT_STACK
from darkroom_cli.sentences import CommandFailed
from darkroom_cli.session import Session

if TYPE_CHECKING:
    from darkroom_local.stack import StackInfo

NOT_RUNNING = "No stack runs on this machine: start it with `darkroom local up`."


def up(session: Session) -> None:
    from darkroom_local import stack  # noqa: PLC0415 - boto3

    with _telling(session) as say:
        info = stack.up(stack=session.target.stack, progress=say)
    session.answer(
        f"Stack {info.stack} runs at {info.url}. Add --local to reach it, or for this shell: "
        'export DARKROOM_LOCAL=1. For the aws command: eval "$(darkroom local env)".',
        _as_json(info),
    )


def down(session: Session) -> None:
    from darkroom_local import stack  # noqa: PLC0415 - boto3

    stopped = stack.down()
    text = "Stopped the stack and removed its state." if stopped else "No stack was running."
    session.answer(text, {"stopped": stopped})


def env(session: Session) -> None:
    info = running()
    lines = [f"export {name}={shlex.quote(v)}" for name, v in info.environment().items()]
    session.answer("\n".join(lines), info.environment())


def running() -> "StackInfo":
    """The stack that `local up` started. Raises CommandFailed."""
    from darkroom_local import stack  # noqa: PLC0415 - boto3

    info = stack.current()
    if info is None:
        raise CommandFailed(NOT_RUNNING)
    return info


def stack_name(target_stack: str, info: "StackInfo") -> str:
    """Without --stack, the one that runs."""
    return info.stack if target_stack == DEFAULT_STACK else target_stack


@contextmanager
def _telling(session: Session) -> Iterator[Callable[[str], None]]:
    """Steps as a spinner on a terminal, as lines in a pipe."""
    if session.json or not session.err.is_terminal:
        yield session.note
        return
    with session.err.status("…") as status:
        yield lambda text: status.update(f"{text} …")


def _as_json(info: "StackInfo") -> dict[str, object]:
    return {
        "stack": info.stack,
        "endpoint_url": info.url,
        "providers_url": info.providers_url,
        "region": info.region,
        "work": info.work,
        "outputs": dict(info.outputs),
    }
