"""Runs a command that must not outlive its parent: `python -m darkroom_local.guard COMMAND ...`.

The parent holds the other end of our standard input. When it dies, however it dies, the pipe closes
and the whole process group goes.
"""

import os
import signal
import subprocess
import sys
import threading


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: returns when the pipe closes
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)  # noqa: S603 - our own command
    threading.Thread(target=_end_with_parent, daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main())
