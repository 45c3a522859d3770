"""Load by LiteLLM's Router, run in an environment of its own: see peers.py.

Set up as its documentation says for limits over several instances: rpm per deployment, Redis shared
by the instances, routing strategy "usage-based-routing-v2", which checks the limit before each call.
When the router itself says that the limit is reached, the row waits a second and asks again.
"""

import json
import multiprocessing
import sys
import threading
import time

import litellm
from litellm import Router

litellm.suppress_debug_info = True
litellm.telemetry = False


def process(load, number, ready, go):
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
    router = Router(
        model_list=[model],
        routing_strategy="usage-based-routing-v2",
        num_retries=0,
        timeout=30,
        **(shared if load["redis_port"] else {}),
    )
    log = open(f"{load['folder']}/{load['name']}-{number}.jsonl", "w", buffering=1)

    def work():
        while True:
            begun = time.time()
            while True:
                try:
                    router.image_generation(prompt="make it red", model="images")
                    line = {"begun": begun, "took": time.time() - begun, "wait": None}
                    break
                except litellm.RateLimitError:
                    time.sleep(1)
                except Exception as error:
                    line = {"begun": begun, "error": f"{type(error).__name__}: {error}"[:200]}
                    time.sleep(1)
                    break
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
    context = multiprocessing.get_context("fork")  # after the import, which takes seconds
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
