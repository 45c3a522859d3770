"""`python -m darkroom_local.providers --port 0 --config FILE`: prints a JSON line, then serves."""

import argparse
import json
import signal
import sys
from pathlib import Path

from pydantic import ValidationError

from darkroom_local.providers.config import Config
from darkroom_local.providers.simulator import running

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> int:
    parser = argparse.ArgumentParser(prog="darkroom_local.providers", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 uses a free one")
    parser.add_argument("--config", type=Path, help="JSON; without it, two endpoints and no limits")
    arguments = parser.parse_args()
    try:
        text = arguments.config.read_text() if arguments.config else "{}"
        config = Config.model_validate_json(text)
    except (OSError, ValidationError) as error:
        sys.stderr.write(f"{arguments.config}: {error}\n")
        return 2
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)  # for sigwait, in every thread
    with running(config, arguments.port) as simulator:
        port = int(simulator.url.rpartition(":")[2])
        line = {"port": port, "url": simulator.url, "endpoints": [*config.endpoints]}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        signal.sigwait(_STOP_SIGNALS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
