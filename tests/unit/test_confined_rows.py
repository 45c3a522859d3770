"""ConfineRowsToPrefix: rows name objects of the stack only under the folder of their CSV."""

from typing import Any

import pytest

from darkroom.editor.image_loading import load_images
from darkroom.errors import Reason, RowRejected
from darkroom.fetcher import SafeImageFetcher
from darkroom.images.references import ImageRules, StoredImage, WebImage
from darkroom.rows import RowRequest
from darkroom.settings import Settings

BASE = "s3://in/team-a/jobs/"
CONFINED = ImageRules(("in", "out", "shared"), confined_buckets=("in", "out"))


@pytest.mark.parametrize(
    "reference",
    [
        "s3://in/team-b/secret.png",
        "s3://in/team-a/photo.png",
        "s3://out/team-b/jobs/x/images/0.png",
        "../photo.png",
        "../../team-b/secret.png",
        "s3://in/team-a/jobs-of-others/photo.png",
    ],
)
def test_an_object_outside_the_folder_is_refused_with_the_parameters_name(reference: str) -> None:
    with pytest.raises(RowRejected, match="ConfineRowsToPrefix") as refused:
        CONFINED.resolve(reference, BASE)
    assert refused.value.reason is Reason.BAD_IMAGE
    assert ImageRules(CONFINED.buckets).resolve(reference, BASE)  # without the parameter


@pytest.mark.parametrize(
    ("reference", "image"),
    [
        ("photo.png", StoredImage("in", "team-a/jobs/photo.png")),
        ("s3://in/team-a/jobs/in/photo.png", StoredImage("in", "team-a/jobs/in/photo.png")),
        ("s3://out/team-a/jobs/x/images/0.png", StoredImage("out", "team-a/jobs/x/images/0.png")),
        ("s3://shared/logo.png", StoredImage("shared", "logo.png")),  # of ImageObjectArns
    ],
)
def test_the_folder_itself_and_the_buckets_of_the_administrator_may_be_named(
    reference: str, image: StoredImage
) -> None:
    assert CONFINED.resolve(reference, BASE) == image


@pytest.mark.parametrize("reference", ["s3://out/team-b/jobs/x/images/0.png", "../photo.png"])
def test_the_fetcher_asks_s3_for_no_image_or_mask_outside_the_folder(
    reference: str,
) -> None:
    values = {name: "x" for name, field in Settings.model_fields.items() if field.is_required()}
    buckets = {"input_bucket": "in", "results_bucket": "out"}
    settings = Settings.model_validate(values | buckets | {"confine_rows_to_prefix": "true"})
    s3: Any = object()  # a request would fail with AttributeError
    fetcher = SafeImageFetcher.from_settings(s3, settings)
    requests = (
        RowRequest(instruction="red", images=(reference,)),
        RowRequest(instruction="red", mask=reference),
    )
    for request in requests:
        with pytest.raises(RowRejected, match="ConfineRowsToPrefix"):
            load_images(request, BASE, fetcher, last_attempt=False)
    fetcher.close()


def test_web_images_are_not_confined() -> None:
    assert isinstance(CONFINED.resolve("https://example.com/a.png", BASE), WebImage)
