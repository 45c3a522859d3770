"""Load by diffgentor's APIClientPool.

Configured as in its README: one endpoint with its rate limit, and the default retries. The pool is
made in each worker process, as its launcher does.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from benchmarks.load.driver import Load, Log, Row, drive, send


def load_pool_module() -> Any:
    """The pool's module by its file: the package's own __init__ would import torch."""
    found = next(
        file for p in sys.path if (file := Path(p) / "diffgentor/utils/api_pool.py").exists()
    )
    spec = importlib.util.spec_from_file_location("api_pool", found)
    if spec is None or spec.loader is None:
        raise ImportError(str(found))
    module = importlib.util.module_from_spec(spec)
    sys.modules["api_pool"] = module
    spec.loader.exec_module(module)
    return module


def make_row(load: Load, _log: Log) -> Row:
    pools = load_pool_module()

    class Pool(pools.APIClientPool):  # type: ignore[misc, name-defined]
        def _create_client(
            self,
            base_url: str,
            api_key: str,
            api_version: None,  # noqa: ARG002 - its signature
            timeout: float,
        ) -> tuple[str, str, float]:
            return base_url, api_key, timeout

        def _execute_request(self, client: Any, *_: Any, **__: Any) -> int:
            status, _retry_after = send(*client)
            if status != 200:
                raise RuntimeError(status)
            return status

    (endpoint,) = load["endpoints"]
    limits = pools.EndpointConfig(
        base_url=endpoint["base_url"],
        api_keys=endpoint["api_keys"],
        rate_limit=endpoint["requests_per_minute"],
        weight=1,
    )
    pool = Pool(pools.PoolConfig(endpoints=[limits]))

    def row() -> dict[str, Any]:
        pool.execute_with_retry()
        return {}

    return row


if __name__ == "__main__":
    drive(make_row)
