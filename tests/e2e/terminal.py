"""The darkroom command as a person uses it: in a terminal, with answers typed to its questions."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

_SECONDS = 240.0
_CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Ended:
    exit_code: int
    screen: str  # everything printed, with the terminal's control sequences

    @property
    def lines(self) -> list[str]:
        """Without control sequences and the blanks at the end of a line."""
        plain = _CONTROL_SEQUENCE.sub("", self.screen).replace("\r\n", "\n")
        return [line.rpartition("\r")[2].rstrip() for line in plain.split("\n")]

    @property
    def text(self) -> str:
        """In one line, so that a sentence is found however it was wrapped."""
        return " ".join(" ".join(self.lines).split())


def run_in_terminal(
    *arguments: object, env: Mapping[str, str], answers: Mapping[str, str] | None = None
) -> Ended:
    """Run `darkroom`. `answers` by a part of the question, each typed once it appears."""
    terminal, child = pty.openpty()
    command = [sys.executable, "-m", "darkroom_cli.main", *map(str, arguments)]
    process = subprocess.Popen(
        command, stdin=child, stdout=child, stderr=child, env={**os.environ, **env}
    )
    os.close(child)
    screen, pending, deadline = b"", dict(answers or {}), time.monotonic() + _SECONDS
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
