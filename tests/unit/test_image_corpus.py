"""Every image of tests/corpus/images.py is normalised, or fails its row with the expected sentence.

Each is loaded like a row's image: fetched, checked by its file type, decoded. Each is measured;
`pytest tests/unit/test_image_corpus.py -s` prints the memory and the CPU time of each.
"""

import io
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from botocore.response import StreamingBody
from PIL import Image

from darkroom.calls import SourceImage
from darkroom.editor.image_loading import load_images
from darkroom.errors import Reason, RowRejected
from darkroom.fetcher import SafeImageFetcher, WebImageFetcher
from darkroom.images.codec import open_source
from darkroom.images.process import CPU_SECONDS, MEMORY_BYTES
from darkroom.images.references import ImageRules
from darkroom.rows import RowRequest
from tests.corpus.images import CASES, DISPLAY_PROFILE, NAME, SECRET, Accepted, largest
from tests.fakes.measured_images import MeasuredImages, measured_images
from tests.fuzz.fuzz_images import OPERATIONS


class OneObject:
    """An S3 client for a bucket where every key is the same object."""

    body = b""

    def get_object(self, **_: str) -> dict[str, Any]:
        stream = StreamingBody(io.BytesIO(self.body), len(self.body))
        return {"ContentLength": len(self.body), "Body": stream}


@pytest.fixture(scope="module")
def fetcher() -> Iterator[SafeImageFetcher]:
    s3: Any = OneObject()
    fetcher = SafeImageFetcher(s3, WebImageFetcher(ImageRules(("in",))))
    with closing(fetcher):
        yield fetcher


def opened(fetcher: SafeImageFetcher, body: bytes) -> SourceImage:
    fetcher._s3.body = body  # type: ignore[attr-defined]
    request = RowRequest(instruction="warm", images=(NAME,))
    (image,) = load_images(request, "s3://in/jobs/", fetcher, last_attempt=True).images
    return image


def test_corpus_has_at_least_120_images_accepted_and_rejected() -> None:
    assert len(CASES) >= 120
    assert {type(expected) for _, expected in CASES.values()} == {Accepted, str}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's, in this test
@pytest.mark.parametrize("name", CASES)
def test_every_image_has_the_expected_outcome(fetcher: SafeImageFetcher, name: str) -> None:
    body, expected = CASES[name]
    if isinstance(expected, Accepted):
        _assert_readable_by_models(opened(fetcher, body), body, expected)
        return
    with pytest.raises(RowRejected) as caught:
        opened(fetcher, body)
    assert (caught.value.reason, caught.value.detail) == (Reason.BAD_IMAGE, expected)
    with pytest.raises(RowRejected) as caught:  # also without the fetcher's check of the file type
        open_source(body, NAME)
    expected = expected.removeprefix("image ").replace(f"'{NAME}'", NAME)
    assert (caught.value.reason, caught.value.detail) == (Reason.BAD_IMAGE, expected)


def _assert_readable_by_models(source: SourceImage, body: bytes, expected: Accepted) -> None:
    assert (source.mime, (source.width, source.height)) == (expected.mime, expected.size)
    assert (source.data == body) == expected.untouched
    assert SECRET not in source.data
    with Image.open(io.BytesIO(source.data)) as image:
        image.load()
        assert Image.MIME[image.format or ""] == expected.mime
        assert image.size == expected.size
        assert image.mode in {"RGB", "RGBA", "L", "LA"}
        assert getattr(image, "n_frames", 1) == 1
        assert (image.info.get("icc_profile") == DISPLAY_PROFILE) == expected.profile
        if expected.stripped:
            with Image.open(io.BytesIO(body)) as original:
                assert image.tobytes() == original.tobytes()


@pytest.fixture(scope="module")
def measured() -> Iterator[MeasuredImages]:
    with measured_images() as images:
        images.run("open_source", CASES["png"][0])
        yield images


@pytest.mark.parametrize("name", CASES)
def test_no_image_takes_more_memory_or_time_than_a_small_photo(
    measured: MeasuredImages, name: str
) -> None:
    """They are small, or claim a size that is rejected: what counts is that none can be large."""
    for operation, arguments in _OPERATIONS.items():
        used = measured.run(operation, CASES[name][0], **arguments)
        peak, cpu = used.peak_bytes / 2**20, used.cpu_seconds
        print(f"{name:45} {operation:12} {peak:6.1f} MiB {cpu:5.2f} s")  # noqa: T201 - with -s
        assert peak < 150
        assert cpu < 2
    assert measured.started == 1


_OPERATIONS = {
    name: OPERATIONS[name]
    for name in ("open_source", "open_mask", "verify", "thumbnail", "preview")
}


@pytest.mark.soak
def test_no_image_at_a_limit_takes_the_image_process_beyond_its_own(
    measured: MeasuredImages,
) -> None:
    """Minutes, and most of a gigabyte: `make soak ARGS=tests/unit/test_image_corpus.py`."""
    for name, data in largest():
        for operation, arguments in OPERATIONS.items():
            used = measured.run(operation, data, **arguments)
            peak, cpu = used.peak_bytes / 2**20, used.cpu_seconds
            print(f"{name:30} {operation:17} {peak:6.0f} MiB {cpu:5.2f} s")  # noqa: T201 - with -s
            assert used.peak_bytes < MEMORY_BYTES + (64 << 20), name
            assert cpu < CPU_SECONDS / 2, name
    assert measured.started == 1
