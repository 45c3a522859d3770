"""One call to a simulated endpoint, standard library only: all systems measured send with this or
with their own client, so that the machine's two cores are not spent on an SDK."""

import http.client
import json
import threading
import urllib.parse

_BODY = json.dumps({"model": "gpt-image-1.5", "prompt": "make it red"}).encode()
_local = threading.local()


def send(base_url: str, key: str, timeout: float) -> tuple[int, float | None]:
    """POST images/generations; (status, Retry-After). Raises OSError."""
    address = urllib.parse.urlsplit(base_url)
    pool = _local.__dict__.setdefault("connections", {})
    connection = pool.get(address.netloc)
    if connection is None:
        connection = http.client.HTTPConnection(address.netloc, timeout=timeout)
        pool[address.netloc] = connection
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", f"{address.path}/images/generations", _BODY, headers)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        raise OSError(str(error)) from error
    wait = response.headers.get("Retry-After")
    return response.status, float(wait) if wait else None
