"""Load by diffgentor's APIClientPool, run in an environment of its own: see peers.py.

Configured as its README says: one endpoint with its rate limit, default retries. Each worker
process has its own pool, as with its launcher.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.limits.peer_driver import Load, drive
from benchmarks.limits.sender import send


def load_pool_module() -> Any:
    """The pool's module, loaded by path: the package's own __init__ would import torch."""
    path = next(
        file for p in sys.path if (file := Path(p) / "diffgentor/utils/api_pool.py").exists()
    )
    spec = importlib.util.spec_from_file_location("api_pool", path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules["api_pool"] = module
    spec.loader.exec_module(module)
    return module


def make_row(load: Load) -> Callable[[], str | None]:
    pools = load_pool_module()

    class Pool(pools.APIClientPool):  # type: ignore[misc, name-defined]
        def _create_client(
            self,
            base_url: str,
            api_key: str,
            api_version: None,  # noqa: ARG002 - the base class's signature
            timeout: float,
        ) -> tuple[str, str, float]:
            return base_url, api_key, timeout

        def _execute_request(self, client: Any, *_: Any, **__: Any) -> int:
            status, _wait = send(*client)
            if status != 200:
                raise RuntimeError(status)
            return status

    endpoint = pools.EndpointConfig(
        base_url=load["url"], api_keys=["k"], rate_limit=load["rate"], weight=1
    )
    pool = Pool(pools.PoolConfig(endpoints=[endpoint]))

    def row() -> str | None:
        try:
            pool.execute_with_retry()
        except Exception as error:  # noqa: BLE001 - its pool raises what the call raised
            return str(error)
        return None

    return row


if __name__ == "__main__":
    drive(make_row)
