"""Load by diffgentor's APIClientPool, run in an environment of its own: see peers.py.

Set up as its README says: one endpoint with its rate limit, retries as by default; the pool is made
in each worker process, as its launcher does.
"""

import importlib.util
import json
import multiprocessing
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from sender import send


def load_pool_module():
    """The pool's module by its file: the package's own __init__ would import torch."""
    found = next(
        Path(p) / "diffgentor/utils/api_pool.py"
        for p in sys.path
        if (Path(p) / "diffgentor/utils/api_pool.py").exists()
    )
    spec = importlib.util.spec_from_file_location("api_pool", found)
    module = importlib.util.module_from_spec(spec)
    sys.modules["api_pool"] = module
    spec.loader.exec_module(module)
    return module


def process(load, number, ready, go):
    pools = load_pool_module()

    class Pool(pools.APIClientPool):
        def _create_client(self, base_url, api_key, api_version, timeout):
            return base_url, api_key, timeout

        def _execute_request(self, client, *args, **kwargs):
            status, _ = send(*client)
            if status != 200:
                raise RuntimeError(status)
            return status

    endpoint = pools.EndpointConfig(
        base_url=load["url"], api_keys=["k"], rate_limit=load["rate"], weight=1
    )
    pool = Pool(pools.PoolConfig(endpoints=[endpoint]))
    log = open(f"{load['folder']}/{load['name']}-{number}.jsonl", "w", buffering=1)

    def work():
        while True:
            begun = time.time()
            try:
                pool.execute_with_retry()
                line = {"begun": begun, "took": time.time() - begun, "wait": None}
            except Exception as error:
                line = {"begun": begun, "error": str(error)}
            log.write(json.dumps(line) + "\n")

    ready.release()
    go.wait()
    threads = [threading.Thread(target=work, daemon=True) for _ in range(load["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main():
    """Reads the loads as JSON from the command line; starts at a line on standard input."""
    loads = json.loads(sys.argv[1])
    context = multiprocessing.get_context("fork")
    go, ready, processes = context.Event(), context.Semaphore(0), []
    for load in loads:
        for number in range(load["processes"]):
            made = context.Process(target=process, args=(load, number, ready, go), daemon=True)
            made.start()
            processes.append(made)
    for _ in processes:
        ready.acquire()
    print("ready", flush=True)
    sys.stdin.readline()
    go.set()
    sys.stdin.readline()
    for made in processes:
        made.kill()


if __name__ == "__main__":
    main()
