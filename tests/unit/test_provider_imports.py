"""A cold start pays for an SDK only when a call needs it."""

import subprocess
import sys

import pytest

HEAVY = ("openai", "google.genai", "PIL.Image", "boto3")


@pytest.mark.parametrize(
    "module",
    [
        "darkroom.models.planner",
        "darkroom.images.codec",
        "darkroom.models.catalog",
        "darkroom.endpoints",
        "darkroom.providers.gemini",
        "darkroom.providers.openai",
    ],
)
def test_a_module_of_the_providers_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []
