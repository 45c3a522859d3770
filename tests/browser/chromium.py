"""A client of Debian's headless Chromium, over its DevTools protocol."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # CI runs as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-address=127.0.0.1",
    "--remote-debugging-port=0",
)
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
DESKTOP = 1360  # CSS pixels
_TIMEOUT_SECONDS = 60.0
_WAIT_SECONDS = 30  # for a condition on the page; less than the time-out of a response


def installed() -> str | None:
    """The browser's path, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@dataclass
class Tab:
    """One page. `console` and `requests` collect its messages and URLs."""

    socket: ClientConnection
    session: str
    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _last: int = 0
    _loaded: str = ""  # the loader of the last page that was loaded

    def call(self, method: str, **params: object) -> Any:
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.socket.send(json.dumps(message))
        while (response := self._receive()).get("id") != self._last:
            pass
        if "error" in response:
            raise RuntimeError(f"{method}: {response['error']['message']}")
        return response["result"]

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.socket.recv(_TIMEOUT_SECONDS))
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.lifecycleEvent" and params["name"] == "load":
            self._loaded = params["loaderId"]
        elif method == "Log.entryAdded":
            self.console.append(f"{params['entry']['level']}: {params['entry']['text']}")
        elif method == "Runtime.consoleAPICalled":
            self.console.append(f"console.{params['type']}")
        elif method == "Runtime.exceptionThrown":
            self.console.append(params["exceptionDetails"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        return message

    def open(self, url: str) -> None:
        """Load a page and wait for its load event."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)
        self.console.clear()
        self.requests.clear()
        loader = self.call("Page.navigate", url=url)["loaderId"]
        while self._loaded != loader:  # the load event of the page before may be late
            self._receive()

    def emulate(
        self, *, width: int, height: int = 900, scheme: str = "light", zoom: int = 1
    ) -> None:
        """Set the window's size in CSS pixels and the preferred colour scheme."""
        sizes = {"width": width, "height": height, "deviceScaleFactor": zoom}
        self.call("Emulation.setDeviceMetricsOverride", **sizes, mobile=width < 600)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def evaluate(self, expression: str) -> Any:
        response = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in response:
            raise RuntimeError(response["exceptionDetails"]["exception"]["description"])
        return response["result"].get("value")

    def press(self, key: str) -> None:
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}
        for kind in ("rawKeyDown", "keyUp"):
            event = {"type": kind, "key": key, "windowsVirtualKeyCode": codes[key]}
            text = {"text": "\r"} if key == "Enter" and kind == "rawKeyDown" else {}
            self.call("Input.dispatchKeyEvent", **event | text)

    def click(self, selector: str) -> None:
        """Click the middle of an element, as a person does."""
        point = self.evaluate(
            "(e => { e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            " return {x: r.x + r.width / 2, y: r.y + r.height / 2} })"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **point)

    def wait_until(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        self.evaluate(
            "new Promise((resolve, reject) => {"
            f" const until = performance.now() + {_WAIT_SECONDS * 1000};"
            f" (function poll() {{ if ({expression}) resolve();"
            f" else if (performance.now() > until) reject(new Error('not in {_WAIT_SECONDS} s'));"
            " else setTimeout(poll, 20); })() })"
        )

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shot = self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self, path: Path) -> None:
        printed = self.call("Page.printToPDF", printBackground=False)
        path.write_bytes(base64.b64decode(printed["data"]))


@contextmanager
def browser(program: str) -> Iterator[Tab]:
    """One tab of a browser that runs until the block ends."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            (program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        stderr = process.stderr
        assert stderr is not None
        try:
            with connect(_address(stderr), max_size=None) as socket:
                root = Tab(socket, "")
                target = root.call("Target.createTarget", url="about:blank")["targetId"]
                attached = root.call("Target.attachToTarget", targetId=target, flatten=True)
                yield Tab(socket, attached["sessionId"])
        finally:
            process.terminate()
            process.wait(20)
            stderr.close()


def _address(stderr: IO[str]) -> str:
    for line in stderr:
        if found := re.search(r"DevTools listening on (ws://\S+)", line):
            return found[1]
    raise RuntimeError("chromium ended without printing its DevTools address")
