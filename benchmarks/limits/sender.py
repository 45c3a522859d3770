"""One call to a simulated endpoint; standard library only.

The systems that have no client of their own send with it, so that an SDK does not use up the cores.
"""

import http.client
import json
import threading
import urllib.parse

_BODY = json.dumps({"model": "gpt-image-1.5", "prompt": "make it red"}).encode()
_local = threading.local()


def send(base_url: str, key: str, timeout: float) -> tuple[int, float | None]:
    """POST images/generations; (status, Retry-After). Raises OSError."""
    url = urllib.parse.urlsplit(base_url)
    pool = _local.__dict__.setdefault("connections", {})
    connection = pool.get(url.netloc)
    if connection is None:
        connection = http.client.HTTPConnection(url.netloc, timeout=timeout)
        pool[url.netloc] = connection
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", f"{url.path}/images/generations", _BODY, headers)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise OSError(str(error)) from error
    wait = response.headers.get("Retry-After")
    return response.status, float(wait) if wait else None
