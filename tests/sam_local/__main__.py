"""`make test-sam-local`: set up an engine and an image where possible, then run the tests.

Where it is not possible the tests are skipped: the reason is printed and the exit status is 0, or
1 with --required, for a pipeline in which a skip must not pass.
"""

import os
import subprocess
import sys

from darkroom_local.processes import ROOT, LocalStackError
from tests.sam_local import engine, image
from tests.sam_local.engine import CannotRunHere

# The engine and image for the tests; without them they are skipped.
HOST_VARIABLE = "DARKROOM_SAM_LOCAL_HOST"
REQUIRED = "--required"
IMAGE_VARIABLE = "DARKROOM_SAM_LOCAL_IMAGE"


def main(arguments: list[str]) -> int:
    required = REQUIRED in arguments
    try:
        with engine.running() as docker:
            stand_in = image.prepare(docker)
            host = docker.host or "this machine's"
            sys.stdout.write(f"sam local: engine {host}, image {stand_in or image.LAMBDA_IMAGE}\n")
            sys.stdout.flush()
            variables = {HOST_VARIABLE: docker.host or "", IMAGE_VARIABLE: stand_in or ""}
            tests = [
                sys.executable,
                "-m",
                "pytest",
                str(ROOT / "tests" / "sam_local"),
                *(a for a in arguments if a != REQUIRED),
            ]
            return subprocess.run(
                tests, cwd=ROOT, env=dict(os.environ) | variables, check=False
            ).returncode
    except (CannotRunHere, LocalStackError) as error:
        sys.stdout.write(f"make test-sam-local: skipped, because {error}\n")
        return int(required)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
