"""The hosts a stack allows and trusts, what a reference resolves to, and file types."""

import io

import pytest
from PIL import Image

from darkroom.editor.image_loading import load_images
from darkroom.errors import ConfigurationError, RowRejected
from darkroom.formatting import quoted, redact_url
from darkroom.images.file_types import describe_unsupported, is_image
from darkroom.images.references import HostList, ImageRules, StoredImage, WebImage
from darkroom.rows import RowRequest

BASE = "s3://in/jobs/"


def rules(allowed: str = "", trusted: str = "") -> ImageRules:
    return ImageRules(("in",), HostList.parse(allowed), HostList.parse(trusted))


def rejection(rules: ImageRules, url: str) -> str:
    with pytest.raises(RowRejected) as caught:
        rules.resolve(url, BASE)
    return caught.value.detail


def test_an_allowed_host_does_not_allow_hosts_with_the_same_ending() -> None:
    only = rules("example.com")
    assert only.resolve("https://example.com/a.png", BASE)
    for host in ("cdn.example.com", "badexample.com", "example.com.evil.org"):
        assert f"is on the host {host}, which AllowedImageHosts does not list" in rejection(
            only, f"https://{host}/a.png"
        )


def test_a_wildcard_allows_subdomains_but_not_the_domain_itself() -> None:
    below = rules("*.example.com, other.org")
    assert below.resolve("https://a.b.example.com/a.png", BASE)
    assert below.resolve("https://other.org/a.png", BASE)
    for host in ("example.com", "badexample.com"):
        assert "AllowedImageHosts" in rejection(below, f"https://{host}/a.png")


def test_an_allowed_host_still_requires_https_and_its_port() -> None:
    only = rules("example.com")
    assert "use https://" in rejection(only, "http://example.com/a.png")
    assert "uses port 8443" in rejection(only, "https://example.com:8443/a.png")


def test_an_allowed_host_with_a_port_is_allowed_at_that_port_only() -> None:
    assert "uses port" in rejection(rules("example.com:8443"), "https://example.com:8443/a.png")
    assert "AllowedImageHosts" in rejection(rules("example.com:8443"), "https://example.com/a.png")


def test_s3_references_need_no_allowed_host() -> None:
    assert rules("example.com").resolve("a.png", BASE) == StoredImage("in", "jobs/a.png")


def test_a_trusted_host_may_use_http_any_port_and_a_plain_name() -> None:
    trusting = rules(allowed="example.com", trusted="photos, 10.0.0.7:8080, [fd00::1]")
    assert trusting.resolve("http://photos/a.png", BASE) == WebImage("http", "photos", 80, "/a.png")
    assert trusting.resolve("http://photos:81/a", BASE)
    assert trusting.resolve("http://10.0.0.7:8080/a", BASE)
    assert trusting.resolve("http://[fd00::1]:9/a", BASE)
    assert "not encrypted" in rejection(trusting, "http://10.0.0.7:8081/a")


@pytest.mark.parametrize(
    "entry", ["https://example.com", "example.com/a", "*", "ex ample.com", "a.com:x", "bücher.de"]
)
def test_an_invalid_host_is_a_configuration_error_that_names_it(entry: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^AllowedImageHosts: ") as caught:
        HostList.parse(f"example.com,{entry}")
    assert entry in str(caught.value)


def test_a_list_of_empty_entries_is_empty() -> None:
    assert not HostList.parse(" , ")


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b.png", "https://example.com/b.png"),
        ("b.png?x=1", "https://example.com/photos/b.png?x=1"),
        ("//cdn.example.com/b.png", "https://cdn.example.com/b.png"),
        ("https://other.org:443/b.png", "https://other.org/b.png"),
        ("../../../b.png", "https://example.com/b.png"),
    ],
)
def test_a_redirect_is_resolved_relative_to_its_origin(location: str, url: str) -> None:
    origin = rules().check_url("https://example.com/photos/a.png?sig=1")
    assert rules().redirect(origin, location).url == url


def test_a_redirect_may_lead_only_to_allowed_hosts() -> None:
    only = rules("example.com")
    with pytest.raises(RowRejected, match="AllowedImageHosts"):
        only.redirect(only.check_url("https://example.com/a"), "https://other.org/b?sig=5ecret")


def test_a_host_header_has_the_port_only_where_it_is_not_the_default() -> None:
    trusting = rules(trusted="photos,[fd00::1]")
    authorities = [
        trusting.check_url(url).authority
        for url in ("https://photos/", "http://photos/", "http://photos:81/", "http://[fd00::1]:9/")
    ]
    assert authorities == ["photos", "photos", "photos:81", "[fd00::1]:9"]


def test_a_key_too_long_for_s3_is_rejected() -> None:
    assert rules().resolve("a" * 1_019, BASE)
    assert "cannot be the key of an object" in rejection(rules(), "a" * 1_020)
    assert "cannot be the key of an object" in rejection(rules(), "ä" * 510)


def test_a_csv_at_the_root_of_the_bucket_has_no_parent_folder() -> None:
    assert rules().resolve("a.png", "s3://in/") == StoredImage("in", "a.png")
    with pytest.raises(RowRejected, match="leads outside"):
        rules().resolve("../a.png", "s3://in/")


def test_an_empty_reference_is_reported_as_empty() -> None:
    assert rejection(rules(), " ") == "image ' ' is empty"


@pytest.mark.parametrize(
    ("reference", "safe"),
    [
        ("https://h/a.png?X-Amz-Signature=5ecret#5ecret", "https://h/a.png?…"),
        ("https://h/a.png#access_token=5ecret", "https://h/a.png?…"),
        ("https://me:5ecret@h/a.png", "https://…@h/a.png"),
        ("https://h/@me/a.png", "https://h/@me/a.png"),
        ("what?.png", "what?.png"),
    ],
)
def test_the_parts_of_a_url_that_give_access_are_never_shown(reference: str, safe: str) -> None:
    assert redact_url(reference) == safe
    assert quoted(reference) == f"'{safe}'"


IMAGES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF\0\0\0\0WEBP",
    b"\0\0\0\x1cftypavif",
    b"\0\0\0\x18ftypheic",
    b"\0\0\0\x18ftyphevc",
)


@pytest.mark.parametrize("head", IMAGES)
def test_images_are_detected_by_their_first_bytes(head: bytes) -> None:
    assert is_image(head)


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html>", "is a web page, not an image: does its URL"),
        (b"<HTML>", "is a web page"),
        (b"<svg xmlns", "is an SVG drawing"),
        (b'<?xml version="1.0"?>\n<!-- x --><svg>', "is an SVG drawing"),
        (b"<?xml version='1.0'?><Error>", "is an XML file"),
        (b'{"error": "no"}', "is JSON"),
        (b"[1]", "is JSON"),
        (b"%PDF-1.7", "is a PDF"),
        (b"PK\x03\x04", "is a zip file"),
        (b"\x1f\x8b\x08", "is a gzip file"),
        (b"8BPS\0\1", "is a Photoshop file"),
        (b"\xff\x0a", "is JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "is JPEG 2000"),
        (b"\0\0\1\0\1\0", "is an icon"),
        (b"\0\0\0\x20ftypisom", "is a video"),
        (b"\x1aE\xdf\xa3", "is a video"),
        (b"RIFF\0\0\0\0WAVE", "is not an image"),
        (b"hello", "is not an image"),
        (b"\0" * 64, "is not an image"),
    ],
)
def test_other_file_types_are_described(head: bytes, sentence: str) -> None:
    assert not is_image(head)
    assert describe_unsupported(head).startswith(sentence)


class CuttingFetcher:
    """An ImageFetcher whose images are cut off, except those with good in their name."""

    def fetch(self, reference: str, base: str) -> bytes:
        out = io.BytesIO()
        Image.new("RGB", (9, 9)).save(out, "PNG")
        return out.getvalue() if "good" in reference else out.getvalue()[:40]


def test_warnings_and_image_names_contain_no_url_signature() -> None:
    signed = "?X-Amz-Signature=5ecret"
    images = (f"https://h/a.png{signed}", f"https://h/good.png{signed}")
    request = RowRequest(instruction="warm", images=images)
    loaded = load_images(request, BASE, CuttingFetcher(), last_attempt=True)
    assert [image.name for image in loaded.images] == ["https://h/good.png?…"]
    assert len(loaded.warnings) == 1
    assert "5ecret" not in loaded.warnings[0]
    with pytest.raises(RowRejected) as caught:
        load_images(
            RowRequest(instruction="warm", images=images[:1]),
            BASE,
            CuttingFetcher(),
            last_attempt=True,
        )
    assert caught.value.detail == "https://h/a.png?… is damaged or cut off"
