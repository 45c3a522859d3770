"""`make test-sam-local`: set up an engine and an image where that may be done, then run the tests.

Where it cannot be done the tests are skipped: the reason is printed and the exit status is 0.
"""

import os
import subprocess
import sys

from darkroom_local.processes import ROOT, LocalStackError
from darkroom_local.sam_local import CannotRunHere, engine, image

# How the tests learn what was set up; without them they are skipped.
HOST = "DARKROOM_SAM_LOCAL_HOST"
IMAGE = "DARKROOM_SAM_LOCAL_IMAGE"


def main(arguments: list[str]) -> int:
    try:
        with engine.running() as docker:
            chosen = image.ready(docker)
            where = docker.host or "this machine's"
            sys.stdout.write(f"sam local: engine {where}, image {chosen or image.REAL}\n")
            sys.stdout.flush()
            known = {HOST: docker.host or "", IMAGE: chosen or ""}
            tests = [sys.executable, "-m", "pytest", str(ROOT / "tests" / "sam_local"), *arguments]
            return subprocess.run(  # noqa: S603 - our own tests
                tests, cwd=ROOT, env=dict(os.environ) | known, check=False
            ).returncode
    except (CannotRunHere, LocalStackError) as error:
        sys.stdout.write(f"make test-sam-local: skipped, because {error}\n")
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
