"""Scratch folders of the one-machine stack: none is left in memory, none in use is removed."""

import subprocess
import sys
from pathlib import Path

import pytest

from darkroom_local import processes

CREATE = (
    "import sys; from pathlib import Path; from darkroom_local import processes\n"
    "processes.MEMORY = Path(sys.argv[1])\n"
    "processes._memory_is_usable = lambda: True\n"
    "print(processes.scratch_folder('other-'), flush=True); sys.stdin.read()"
)


def test_a_scratch_folder_of_a_killed_process_is_removed_and_one_in_use_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "MEMORY", tmp_path)
    monkeypatch.setattr(processes, "_memory_is_usable", lambda: True)
    command = [sys.executable, "-c", CREATE, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        abandoned = Path(other.stdout.readline().strip())
        mine = processes.scratch_folder("mine-")
        assert abandoned.is_dir()
        other.kill()
        other.wait()
    second = processes.scratch_folder("mine-")
    assert not abandoned.exists()
    assert mine.is_dir()
    assert second.is_dir()
