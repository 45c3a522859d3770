"""The child process that decodes images: its limits, and what its loss leads to."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from PIL import Image

from darkroom.errors import ServiceUnavailable
from darkroom.images import process
from darkroom.images.process import ImageProcess, Rejected
from tests.corpus.images import patched, photo, saved
from tests.fakes.measured_images import measured_images
from tests.fuzz.fuzz_images import run

PNG = saved(photo(), "PNG")


@pytest.fixture
def images() -> Iterator[ImageProcess]:
    with closing(ImageProcess()) as images:
        yield images


def child_pid(images: ImageProcess) -> int:
    assert images._child is not None
    return images._child.process.pid


def test_one_process_serves_all_threads(images: ImageProcess) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: images.run("open_source", PNG, {}), range(40)))
    assert {tuple(reply.value) for reply in replies} == {("image/png", 64, 48)}
    assert all(reply.data is PNG for reply in replies)


def test_an_image_that_takes_too_much_memory_is_rejected_and_the_process_goes_on() -> None:
    large = saved(Image.new("RGB", (6000, 6000)), "PNG")
    with closing(ImageProcess(memory_bytes=100 << 20)) as images:
        images.run("verify", PNG, {})
        pid = child_pid(images)
        with pytest.raises(Rejected, match="too much memory"):
            images.run("verify", large, {})
        images.run("verify", PNG, {})
        assert child_pid(images) == pid


def test_an_image_that_takes_too_long_is_rejected_and_the_next_one_is_decoded() -> None:
    slow = saved(Image.effect_noise((4000, 4000), 90), "PNG", compress_level=1)
    with closing(ImageProcess(cpu_seconds=0)) as images:  # to the end of the present second
        with pytest.raises(Rejected, match="takes more than 0 s to decode"):
            images.run("fit", slow, {"mime_types": ["image/webp"], "max_bytes": 10})
        images.run("verify", PNG, {})


def test_a_lost_process_costs_no_image(images: ImageProcess) -> None:
    images.run("verify", PNG, {})
    os.kill(child_pid(images), 9)
    assert images.run("open_source", PNG, {}).value == ["image/png", 64, 48]


def test_an_image_that_crashes_every_process_is_rejected(
    images: ImageProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a fault in a C library would: the child ends in the middle of each operation."""
    monkeypatch.setattr(process, "_START", [sys.executable, "-c", _CRASHING])
    with pytest.raises(Rejected, match="crash"):
        images.run("verify", PNG, {})


_CRASHING = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
connection.send_bytes(b"ready")
connection.recv_bytes()
"""


def test_a_process_that_does_not_start_is_not_the_images_fault(
    images: ImageProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in ([sys.executable, "-c", "raise SystemExit(3)"], ["/no/such/python"]):
        monkeypatch.setattr(process, "_START", command)
        with pytest.raises(ServiceUnavailable, match="start"):
            images.run("verify", PNG, {})


def test_the_process_has_no_credentials_and_ends_with_its_parent() -> None:
    program = f"""
import json, os
from pathlib import Path
from darkroom.images import codec
codec.verify({PNG!r})
pid = codec._process()._child.process.pid
print(json.dumps([pid, Path(f"/proc/{{pid}}/environ").read_text()]), flush=True)
os._exit(0)
"""
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True, text=True
    )
    pid, child_environment = json.loads(done.stdout)
    assert "wJalrXUtnFEMI" not in child_environment
    while _is_running(pid):
        pass


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().split()[2] != "Z"
    except OSError:
        return False


def test_a_webp_is_measured_before_its_decoder_allocates_it(images: ImageProcess) -> None:
    """34 bytes that claim 16383x16383 pixels: Pillow allocates 2 GB when it opens them."""
    webp = saved(photo(), "WEBP", lossless=True)
    bits = (16_382 | 16_382 << 14).to_bytes(4, "little")
    with pytest.raises(Rejected, match="has 16383x16383 pixels: at most 30 million"):
        images.run("open_source", patched(webp, 21, bits)[:34], {})


def test_an_answer_is_decoded_as_a_whole(images: ImageProcess) -> None:
    with pytest.raises(Rejected, match="damaged"):
        images.run("verify", PNG[:-60], {})
    thumb = images.run("thumbnail", PNG, {"longest_side": 32}).data
    assert Image.open(io.BytesIO(thumb)).size == (32, 24)


def test_mutated_images_end_as_an_image_or_a_sentence() -> None:
    """A small share of `make fuzz-images`, the same at every run."""
    with measured_images() as measured:
        findings = run(measured, seed=1, count=60, seconds=float("inf"))
    assert findings.images == 60
    assert findings.broken_rules == []
    assert measured.started == 1
