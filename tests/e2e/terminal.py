"""The darkroom command as a person uses it: in a terminal, with answers typed to its questions."""

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class Ended:
    exit_code: int
    screen: str  # everything printed, with the terminal's control sequences


def run_in_terminal(
    *arguments: object, env: Mapping[str, str], answers: Mapping[str, str]
) -> Ended:
    """Run `darkroom`. `answers` by a part of the question, each typed once it appears."""
    terminal, child = pty.openpty()
    command = [sys.executable, "-m", "darkroom_cli.main", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env={**os.environ, **env}
    )
    os.close(child)
    screen, pending, deadline = b"", dict(answers), time.monotonic() + _SECONDS
    try:
        while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                screen += os.read(terminal, 65_536)
            except OSError:  # the terminal is closed: the command has ended
                break
            for question in [q for q in pending if q.encode() in screen]:
                os.write(terminal, f"{pending.pop(question)}\n".encode())
    finally:
        process.terminate()
        os.close(terminal)
    return Ended(process.wait(30), screen.decode(errors="replace"))
