"""ConfineRowsToPrefix: rows name objects of the stack only under the folder of their CSV."""

import pytest

from darkroom.errors import Reason, RowRejected
from darkroom.images.references import ImageRules, StoredImage, WebImage

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


def test_web_images_are_not_confined() -> None:
    assert isinstance(CONFINED.resolve("https://example.com/a.png", BASE), WebImage)
