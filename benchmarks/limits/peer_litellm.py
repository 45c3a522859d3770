"""Load by LiteLLM's Router, run in an environment of its own: see peers.py.

Configured as its documentation says for limits over several instances: rpm per deployment, a Redis
that the instances share, and the routing strategy "usage-based-routing-v2", which checks the limit
before each call. When the router itself reports that the limit is reached, the row is tried again
a second later. Its image generation lets the OpenAI SDK make two retries of its own after a 429,
which no setting of the router prevents (a call with `max_retries: 0` made three requests).
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import litellm  # type: ignore[import-not-found]

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.limits.peer_driver import Load, drive

litellm.suppress_debug_info = True
litellm.telemetry = False


def make_row(load: Load) -> Callable[[], str | None]:
    model = {
        "model_name": "images",
        "litellm_params": {
            "model": "openai/gpt-image-1.5",
            "api_base": load["url"],
            "api_key": "k",
            "rpm": load["rate"],
            "max_retries": 0,
        },
        "model_info": {"id": load["name"]},
    }
    shared = {"redis_host": "127.0.0.1", "redis_port": load["redis_port"]}
    router = litellm.Router(
        model_list=[model],
        routing_strategy="usage-based-routing-v2",
        num_retries=0,
        timeout=30,
        **(shared if load["redis_port"] else {}),
    )

    def row() -> str | None:
        while True:
            try:
                router.image_generation(prompt="make it red", model="images")
            except litellm.RateLimitError:
                time.sleep(1)
            except Exception as error:  # noqa: BLE001 - counted, by name, in the results
                time.sleep(1)
                return f"{type(error).__name__}: {error}"[:200]
            else:
                return None

    return row


if __name__ == "__main__":
    drive(make_row)
