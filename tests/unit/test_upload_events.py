import pytest
from pydantic import ValidationError

from darkroom.aws.events import continuation_event, uploads_in
from darkroom.splitter import CsvUploaded


def _upload(key: str = "jobs/products.csv", version: str | None = "v1") -> CsvUploaded:
    return CsvUploaded("in", key, version, "0A1B", 12, "abc")


@pytest.mark.parametrize("key", ["jobs/a b+c.csv", "jobs/ä/ü%20.csv", "x.csv.gz"])
def test_an_event_read_back_is_the_same_upload_whatever_its_key(key: str) -> None:
    assert list(uploads_in(continuation_event(_upload(key)))) == [_upload(key)]


def test_an_event_tells_the_run_that_the_first_event_told() -> None:
    (again,) = uploads_in(continuation_event(_upload()))
    assert again.run == _upload().run


def test_an_upload_without_a_version_stays_without_one() -> None:
    (again,) = uploads_in(continuation_event(_upload(version=None)))
    assert again.version_id is None


def test_the_test_event_that_s3_sends_at_set_up_names_no_upload() -> None:
    assert list(uploads_in({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "in"})) == []


def test_a_record_that_is_not_of_s3_is_an_error_that_names_the_field() -> None:
    with pytest.raises(ValidationError, match="s3"):
        list(uploads_in({"Records": [{"Sns": {}}]}))
