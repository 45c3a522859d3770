"""`python -m darkroom_local.providers --port 0 --config FILE`: prints a JSON line, then serves."""

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from pydantic import ValidationError

from darkroom_local.providers.config import Config
from darkroom_local.providers.server import SimulatedProviders


async def _main(config: Config, port: int) -> None:
    stop = asyncio.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signal_number, stop.set)
    async with SimulatedProviders(config).listening(port) as bound_port:
        url = f"http://127.0.0.1:{bound_port}"
        line = {"port": bound_port, "url": url, "endpoints": [*config.endpoints]}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        await stop.wait()


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
    asyncio.run(_main(config, arguments.port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
