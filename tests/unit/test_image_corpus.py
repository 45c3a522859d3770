"""Every picture of tests/corpus/images.py is brought into form, or ends its row with its sentence.

They take the way of a row's picture: fetched, sniffed, decoded.
"""

import io
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from botocore.response import StreamingBody
from PIL import Image

from darkroom.calls import SourceImage
from darkroom.editor.image_loading import load
from darkroom.errors import Reason, RowRejected
from darkroom.fetcher import SafeImageFetcher
from darkroom.images.references import ImageRules
from darkroom.rows import RowRequest
from tests.corpus.images import CASES, NAME, Accepted, Verdict


class OneObject:
    """An S3 client for a bucket where every key is the same object."""

    body = b""

    def get_object(self, **_: str) -> dict[str, Any]:
        stream = StreamingBody(io.BytesIO(self.body), len(self.body))
        return {"ContentLength": len(self.body), "Body": stream}


@pytest.fixture(scope="module")
def fetcher() -> Iterator[SafeImageFetcher]:
    fetcher = SafeImageFetcher(OneObject(), ImageRules(("in",)))  # type: ignore[arg-type]
    with closing(fetcher):
        yield fetcher


def opened(fetcher: SafeImageFetcher, body: bytes) -> SourceImage:
    fetcher._s3.body = body  # type: ignore[attr-defined]
    request = RowRequest(instruction="warm", images=(NAME,))
    (image,) = load(request, "s3://in/jobs/", fetcher, last_attempt=True).images
    return image


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(CASES) >= 40


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow's, of one of them
@pytest.mark.parametrize("name", CASES)
def test_every_picture_gets_its_verdict(fetcher: SafeImageFetcher, name: str) -> None:
    make, verdict = CASES[name]
    body = make()
    if isinstance(verdict, Accepted):
        _is_what_models_read(opened(fetcher, body), body, verdict)
        return
    with pytest.raises(RowRejected) as caught:
        opened(fetcher, body)
    assert (caught.value.reason, caught.value.detail) == (Reason.BAD_IMAGE, verdict)


def _is_what_models_read(source: SourceImage, body: bytes, verdict: Accepted) -> None:
    assert (source.mime, (source.width, source.height)) == (verdict.mime, verdict.size)
    assert (source.data == body) == verdict.untouched
    with Image.open(io.BytesIO(source.data)) as image:
        image.load()
        assert Image.MIME[image.format or ""] == verdict.mime
        assert image.size == verdict.size
        assert image.mode in {"RGB", "RGBA", "L", "LA"}
        assert getattr(image, "n_frames", 1) == 1


BOMBS: list[str] = [name for name in CASES if "bomb" in name or "wide" in name]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_it_is_unpacked(fetcher: SafeImageFetcher, name: str) -> None:
    make, _ = CASES[name]
    body = make()
    assert len(body) < 1_000_000
    tracemalloc.start()
    try:
        with pytest.raises(RowRejected):
            opened(fetcher, body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10_000_000


def test_each_kind_of_verdict_is_there() -> None:
    verdicts: list[Verdict] = [verdict for _, verdict in CASES.values()]
    assert {type(verdict) for verdict in verdicts} == {Accepted, str}
