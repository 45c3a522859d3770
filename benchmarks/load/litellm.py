"""Load by LiteLLM's Router.

Configured as documented for limits over several instances: rpm per deployment, a Redis that
the instances share, and the routing strategy "usage-based-routing-v2", which checks the limit
before each call. When the router itself reports that the limit is reached, the row is tried again a
second later. Its image generation lets the OpenAI SDK make two retries of its own after a 429; no
setting of the router stops them (a call with `max_retries: 0` made three).
"""

import time
from typing import Any

import litellm  # type: ignore[import-not-found]

from benchmarks.load.driver import Load, Log, Row, drive

litellm.suppress_debug_info = True
litellm.telemetry = False


def make_row(load: Load, _log: Log) -> Row:
    (endpoint,) = load["endpoints"]
    model = {
        "model_name": "images",
        "litellm_params": {
            "model": "openai/gpt-image-1.5",
            "api_base": endpoint["base_url"],
            "api_key": endpoint["api_keys"][0],
            "rpm": endpoint["requests_per_minute"],
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

    def row() -> dict[str, Any]:
        while True:
            try:
                router.image_generation(prompt="make it red", model="images")
            except litellm.RateLimitError:
                time.sleep(1)
            except Exception:
                time.sleep(1)
                raise
            else:
                return {}

    return row


if __name__ == "__main__":
    drive(make_row)
