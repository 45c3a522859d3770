"""The memory of a worker that edits ten rows at once, against the memory of its function."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from darkroom.images.memory import MemoryBudget
from darkroom.images.process import MEMORY_BYTES
from darkroom.settings import Settings

ROOT = Path(__file__).parents[2]


def editor_memory_mb() -> int:
    """The editor's in the template."""
    editor = (ROOT / "template.yaml").read_text().partition("  EditorFunction:\n")[2]
    found = re.search(r"MemorySize: (\d+)", editor)
    assert found is not None
    return int(found[1])


def test_the_budget_of_a_worker_is_made_for_the_memory_of_the_function() -> None:
    default = Settings.model_fields["aws_lambda_function_memory_size"].default
    assert default == editor_memory_mb()
    budget = MemoryBudget.of_function(default)
    assert budget.total_bytes == MemoryBudget.of_function().total_bytes
    assert budget.total_bytes < (default << 20) - MEMORY_BYTES


@pytest.mark.soak
def test_ten_rows_of_4k_and_images_at_every_limit_fit_into_the_function(tmp_path: Path) -> None:
    """`make bench-memory` prints the table; it ends with an error where the memory is exceeded."""
    command = [sys.executable, "-m", "benchmarks.memory", "--output", str(tmp_path / "memory.json")]
    options = ["--memory", str(editor_memory_mb())]
    done = subprocess.run([*command, *options], cwd=ROOT, check=False, capture_output=True)
    print(done.stdout.decode())  # noqa: T201 - with -s
    assert done.returncode == 0, done.stderr.decode()
