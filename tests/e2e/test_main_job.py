"""The main job on a deployed stack, started through S3 and by the darkroom command.

One file, so that all its tests run in the process that deployed the stack.
"""

import csv
import gzip
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from darkroom_cli.main import app
from darkroom_local import stack
from darkroom_local.processes import wait_until
from darkroom_local.providers import Config, Fault, FaultKind, SimulatedEndpoint, When
from tests.e2e.harness import Results, StackHarness, encoded_image
from tests.e2e.terminal import run_in_terminal

pytestmark = pytest.mark.e2e
Command = Callable[..., Result]
CONFIG = Config(
    endpoints={
        "gemini-main": SimulatedEndpoint(
            faults=(
                Fault(kind=FaultKind.OVERLOADED, when=When(prompt_contains="gemini is down")),
                Fault(kind=FaultKind.REFUSED, when=When(prompt_contains="not allowed")),
            )
        ),
        "openai-main": SimulatedEndpoint(),
    }
)
OVERRIDES = {"gemini-main": {"max_retries": 1, "retry_delay_seconds": 0.1}}
DOWN = Fault(kind=FaultKind.OVERLOADED, when=When(prompt_contains="both are down"))

HEADER = "image_url,instruction,aspect_ratio,output_name,sku\n"
MIXED = Path(__file__).with_name("mixed.csv").read_text()
SUCCEEDED = ("succeeded", "")
EXPECTED = [
    *[SUCCEEDED] * 5,
    ("failed", "refused"),
    *[("failed", "bad_image")] * 2,
    *[("failed", "bad_input")] * 3,
    SUCCEEDED,
]
# The file, its upload options, and a part of the reason.
BAD_UPLOADS = {
    "png-renamed": (encoded_image(), {}, "not a CSV"),
    "empty": (b"", {}, "empty"),
    "no-header": (b"photos/one.png,Make it night\nphotos/two.jpg,Make it day\n", {}, "instruction"),
    "no-instruction": (b"image_url,sku\nphotos/one.png,A-1\n", {}, "instruction"),
    "cut-off": (b'image_url,instruction\nphotos/one.png,"Make it night\n,and then', {}, "quote"),
    "typo": ((HEADER + ",A tree,,,\n").encode(), {"buget-usd": "5"}, "buget-usd"),
}


def outcomes(results: Results) -> list[tuple[str, str]]:
    return [(line["status"], line["reason"]) for line in results.manifest]


@pytest.fixture(scope="module")
def harness() -> Iterator[StackHarness]:
    with stack.running(stack="darkroom-e2e", config=CONFIG, overrides=OVERRIDES) as info:
        yield StackHarness(info)


@pytest.fixture(scope="module")
def photos(harness: StackHarness) -> None:
    harness.put("shop/photos/one.png", encoded_image("teal"))
    harness.put("shop/photos/two.jpg", encoded_image("orange", (200, 100), "JPEG"))
    harness.put("shop/photos/notes.png", b"these are notes, not an image")


@pytest.fixture(scope="module")
def mixed(harness: StackHarness, photos: None) -> Results:
    return harness.run("shop/mixed.csv", ("\ufeff" + MIXED).encode())


def test_every_row_is_in_the_manifest_once_with_the_expected_status(mixed: Results) -> None:
    assert [line["row"] for line in mixed.manifest] == [str(n) for n in range(len(EXPECTED))]
    assert [line["sku"] for line in mixed.manifest] == [f"A-{n + 1}" for n in range(len(EXPECTED))]
    assert outcomes(mixed) == EXPECTED


def test_a_failed_row_has_a_detailed_reason(mixed: Results) -> None:
    failed = [line for line in mixed.manifest if line["status"] == "failed"]
    assert all(line["detail"] and not line["output"] for line in failed)
    assert "instruction" in failed[3]["detail"]
    assert "5:7" in failed[4]["detail"]


def test_every_edited_image_exists_and_differs_from_its_input(mixed: Results) -> None:
    done = [line for line in mixed.manifest if line["status"] == "succeeded"]
    for line in done:
        image = mixed.image(line)
        image.load()
        assert image.getcolors(maxcolors=1) is None, "the image was returned unchanged"
    assert mixed.image(done[2]).format == "JPEG"
    assert done[2]["output"] == "shop/mixed/images/both.jpg"


def test_each_result_names_its_provider_endpoint_and_model(mixed: Results) -> None:
    first, fallback = mixed.manifest[0], mixed.manifest[4]
    names = [(row["provider"], row["endpoint"], row["fallback"]) for row in (first, fallback)]
    assert names == [("gemini", "gemini-main", "false"), ("openai", "openai-main", "true")]
    assert float(first["cost_usd"]) > 0
    assert first["attempts"] == "1"
    assert "gemini-3-pro-image" in json.dumps(mixed.metadata(first))


def test_refusal_never_falls_back(mixed: Results) -> None:
    refused = mixed.manifest[5]
    assert refused["fallback"] == "false"
    refused_by = refused["provider"], refused["endpoint"], refused["model"]
    assert refused_by == ("gemini", "gemini-main", "gemini-3-pro-image")


def test_nothing_is_written_outside_the_job(mixed: Results, harness: StackHarness) -> None:
    bucket = harness.info.outputs["ResultsBucketName"]
    found = harness.s3.list_objects_v2(Bucket=bucket)["Contents"]
    assert [o["Key"] for o in found if "escape" in o["Key"]] == []


def test_summary_and_gallery_agree_with_the_manifest(mixed: Results) -> None:
    summary = mixed.summary
    assert summary["state"] == "done"
    counts = summary["counts"]
    assert (counts["rows"], counts["succeeded"], counts["failed"]) == (len(EXPECTED), 6, 6)
    assert summary["by_reason"] == {"refused": 1, "bad_image": 2, "bad_input": 3}
    page = mixed.read("report.html").decode()
    assert page.count("A lighthouse at dusk") >= 1
    stored = [name for name in mixed.names() if name.endswith(("-before.webp", "-after.webp"))]
    assert page.count('<img src="data:image/webp;base64,') == len(stored) > counts["succeeded"]
    assert all(f'href="{name}"' in page for name in stored if name.endswith("-before.webp"))
    assert {"manifest.csv", "failed.csv", "job.json", "report.html"} <= mixed.names()
    failed = list(csv.DictReader(io.StringIO(mixed.read("failed.csv").decode())))
    lines = [line for line in mixed.manifest if line["status"] == "failed"]
    assert len({row["index"] for row in failed}) == len(lines)
    assert [row["sku"] for row in failed] == [line["sku"] for line in lines]
    endpoints = {e["endpoint"]: e["failed"] + e["dead"] for e in summary["endpoints"]}
    assert endpoints["gemini-main"] == 1
    assert endpoints[None] == 5


def test_repeating_an_upload_pays_for_nothing(harness: StackHarness, photos: None) -> None:
    harness.run("shop/repeated.csv", MIXED.encode())
    before = harness.simulator.stats()
    again = harness.run("shop/repeated.csv", MIXED.encode())
    assert harness.simulator.stats() == before
    assert outcomes(again) == EXPECTED
    assert again.summary["counts"]["resumed"] == 6
    assert again.summary["counts"]["succeeded"] == 6
    assert again.manifest[4]["endpoint"] == "openai-main"


def test_a_corrected_upload_redoes_only_the_changed_rows(
    harness: StackHarness, photos: None
) -> None:
    first = HEADER + "photos/one.png,Make it [row:x] green,,,B-1\n,A [row:y] tree,,,B-2\n"
    harness.run("shop/corrected.csv", first.encode())
    fixed = harness.run("shop/corrected.csv", first.replace("green", "blue").encode())
    assert outcomes(fixed) == [SUCCEEDED] * 2
    calls = harness.simulator.stats()["gemini-main"]["calls_by_marker"]
    assert (calls["x"], calls["y"]) == (2, 1)


def test_a_row_inserted_at_the_top_is_the_only_one_edited_and_paid(
    harness: StackHarness, photos: None
) -> None:
    header = "image_url,instruction\n"
    rows = ["photos/one.png,Make it [row:one] night\n", ",A [row:tree] tree\n"]
    first = harness.run("shop/inserted.csv", (header + "".join(rows)).encode())
    spent = first.summary["cost"]["total_usd"]
    calls = harness.simulator.stats()["gemini-main"]["calls"]
    inserted = ["photos/two.jpg,Make it day\n", *reversed(rows)]
    again = harness.run("shop/inserted.csv", (header + "".join(inserted)).encode())
    assert outcomes(again) == [SUCCEEDED] * 3
    assert harness.simulator.stats()["gemini-main"]["calls"] == calls + 1
    assert [line["output"].rpartition("/")[2] for line in again.manifest] == [
        *("two.png", "000001.png", "one.png")
    ]
    assert again.summary["counts"]["resumed"] == 2
    cost = again.summary["cost"]
    assert cost["earlier_runs_usd"] == spent > 0
    assert cost["total_usd"] == pytest.approx(spent + cost["this_run_usd"])
    last = harness.run("shop/inserted.csv", (header + "photos/one.png,Make it dusk\n").encode())
    assert last.manifest[0]["output"] == "shop/inserted/images/one.png"
    total = cost["total_usd"] + last.summary["cost"]["this_run_usd"]
    assert last.summary["cost"]["total_usd"] == pytest.approx(total)


def test_a_duplicate_event_changes_nothing(harness: StackHarness, photos: None) -> None:
    results = harness.run("shop/twice.csv", (HEADER + ",A [row:twice] boat,,,C-1\n").encode())
    version = results.summary["source"]["version_id"]
    csv = {"key": "shop/twice.csv", "versionId": version, "sequencer": "0055AED6DCD90281E5"}
    record = {"s3": {"bucket": {"name": harness.info.outputs["InputBucketName"]}, "object": csv}}
    answer = harness.info.client("lambda").invoke(
        FunctionName=harness.info.outputs["SplitterFunctionName"],
        Payload=json.dumps({"Records": [record]}).encode(),
    )
    assert "FunctionError" not in answer
    assert harness.simulator.stats()["gemini-main"]["calls_by_marker"]["twice"] == 1
    assert outcomes(results) == [SUCCEEDED]


def test_a_gzipped_csv_is_read(harness: StackHarness, photos: None) -> None:
    body = gzip.compress((HEADER + "photos/one.png,Make it night,,,D-1\n").encode())
    results = harness.run("shop/zipped.csv.gz", body)
    assert results.job == "shop/zipped"
    assert outcomes(results) == [SUCCEEDED]


def test_a_multipart_upload_starts_a_job(harness: StackHarness, photos: None) -> None:
    s3, body = harness.s3, (HEADER + ",A small house,,,E-1\n").encode()
    upload = {"Bucket": harness.info.outputs["InputBucketName"], "Key": "shop/parts.csv"}
    upload["UploadId"] = s3.create_multipart_upload(**upload)["UploadId"]
    tag = s3.upload_part(**upload, PartNumber=1, Body=body)["ETag"]
    parts = {"Parts": [{"ETag": tag, "PartNumber": 1}]}
    done = s3.complete_multipart_upload(**upload, MultipartUpload=parts)
    assert outcomes(harness.wait("shop/parts", done.get("VersionId"))) == [SUCCEEDED]


def test_options_of_the_upload_are_applied(harness: StackHarness, photos: None) -> None:
    rows = "".join(f",Tree number {n},,,F-{n}\n" for n in range(4))
    results = harness.run("shop/options.csv", (HEADER + rows).encode(), {"filter-rows": "1,3"})
    assert [line["status"] for line in results.manifest] == ["skipped", "succeeded"] * 2


@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_a_bad_file_or_option_fails_with_one_clear_sentence(
    harness: StackHarness, name: str
) -> None:
    body, options, expected = BAD_UPLOADS[name]
    summary = harness.run(f"bad/{name}.csv", body, options).summary
    assert summary["state"] == "failed"
    assert expected in summary["reason"]
    assert "\n" not in summary["reason"]
    assert "Traceback" not in summary["reason"]


@pytest.fixture
def darkroom(harness: StackHarness) -> Command:
    def invoke(*arguments: object, env: Mapping[str, str] | None = None) -> Result:
        environment = harness.info.environment() | dict(env or {})
        result = CliRunner(env=environment).invoke(app, [str(a) for a in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


@pytest.fixture
def end_outage(harness: StackHarness) -> Iterator[Callable[[], None]]:
    """Both providers fail for some rows until the returned function is called."""
    failing = {name: SimulatedEndpoint(faults=(DOWN,)) for name in CONFIG.endpoints}
    harness.simulator.configure(Config(endpoints=failing))
    yield lambda: harness.simulator.configure(CONFIG)
    harness.simulator.configure(CONFIG)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    Image.new("RGB", (64, 48), "teal").save(tmp_path / "work/near.png")
    Image.new("RGB", (64, 48), "olive").save(tmp_path / "far.png")
    rows = "near.png,make it warm\n../far.png,make it cold\nnear.png,both are down\n"
    (tmp_path / "work/people.csv").write_text(f"image_url,instruction\n{rows}")
    return tmp_path / "work"


def last_line(result: Result) -> dict[str, object]:
    return dict(json.loads(result.stdout.splitlines()[-1]))


def test_the_doctor_finds_nothing_wrong(darkroom: Command) -> None:
    checked = darkroom("doctor", "--json")
    findings = json.loads(checked.stdout)
    assert checked.exit_code == 0, findings
    versions = [f["detail"] for f in findings if f["check"].endswith("function")]
    assert versions == ["version 1 runs"] * 5


def test_a_folder_becomes_a_gallery_and_dead_rows_can_be_redriven(
    darkroom: Command, end_outage: Callable[[], None], folder: Path
) -> None:
    csv = folder / "people.csv"
    submitted = darkroom(
        *("submit", csv, "--to", "cli", "--allow-outside", "--wait", "--every", "0.5"),
        *("--max-attempts", 1, "--json"),
    )
    assert submitted.exit_code == 3, submitted.stderr  # a row is dead
    first = last_line(submitted)
    assert (first["state"], first["succeeded"], first["dead"]) == ("done", 2, 1)
    (failure,) = json.loads(darkroom("failures", "cli/people", "--json").stdout)
    assert (failure["row"], failure["reason"]) == (2, "unavailable")

    end_outage()
    redriven = darkroom("redrive", "cli/people", "--reason", "unavailable", "--json")
    assert json.loads(redriven.stdout)["redriven"] == 1
    status = ("status", "cli/people", "--json")
    assert wait_until(lambda: not json.loads(darkroom(*status).stdout)["dead"], 240, 0.5)
    ended = last_line(darkroom("status", "cli/people", "--watch", "--every", "0.5", "--json"))
    assert (ended["state"], ended["succeeded"], ended["dead"]) == ("done", 3, 0)
    assert json.loads(darkroom("failures", "cli/people", "--json").stdout) == []

    out = folder / "out"
    report = darkroom("download", "cli/people", out).stdout.strip()
    assert Path(report).is_file()
    names = {path.name for path in (out / "images").iterdir()}
    assert len(names) == 3
    assert {re.sub(r"-[0-9a-f]{12}", "-*", name) for name in names} == {"near-*.png", "far.png"}
    again = json.loads(darkroom("download", "cli/people", out, "--json").stdout)
    assert again["downloaded"] == 0


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Where the command keeps galleries, and a browser that opens nothing."""
    return {"HOME": str(tmp_path / "home"), "BROWSER": "true", "PATH": os.environ["PATH"]}


def test_a_folder_and_a_sentence_are_tried_continued_and_opened_in_a_terminal(
    harness: StackHarness, home: dict[str, str], tmp_path: Path
) -> None:
    for number in range(1, 11):
        path = tmp_path / f"holiday/IMG_{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), (number * 20, 90, 120)).save(path)
    (tmp_path / "holiday/notes.txt").write_text("sun cream")
    (tmp_path / "holiday/broken.jpg").write_bytes(b"not an image")
    ended = run_in_terminal(
        *("submit", tmp_path / "holiday", "--to", "trial", "--try", 3, "--every", "0.5", "--wait"),
        *("--instruction", "Make it {{bright}}"),
        env=harness.info.environment() | home,
        answers={"Edit the other 7 rows?": "y"},
    )
    assert ended.exit_code == 0, ended.screen
    assert "2 other files skipped" in ended.screen
    assert "3 rows for $" in ended.screen
    results = Results(harness.s3, harness.info.outputs["ResultsBucketName"], "trial/holiday")
    assert outcomes(results) == [SUCCEEDED] * 10
    assert {line["instruction_sent"] for line in results.manifest} == {"Make it {bright}"}
    names = [f"trial/holiday/images/IMG_{number}.png" for number in range(1, 11)]
    assert [line["output"] for line in results.manifest] == names
    assert results.summary["counts"]["resumed"] == 3
    (gallery,) = (tmp_path / "home").rglob("report.html")
    assert "trial/holiday" in gallery.read_text()


def test_corrected_rows_of_failed_csv_are_edited_and_no_others(
    harness: StackHarness, darkroom: Command, tmp_path: Path
) -> None:
    table = tmp_path / "goods.csv"
    table.write_text("image_url,name\n,mug\n,not allowed\n,cup\n")
    submit = ("submit", table, "--to", "corrected", "--wait", "--every", "0.5", "--json")
    submitted = darkroom(*submit, "--instruction", "Draw a {name}")
    assert last_line(submitted)["failed"] == 1
    out = tmp_path / "out"
    assert darkroom("download", "corrected/goods", out).exit_code == 0
    failed = (out / "failed.csv").read_text()
    assert failed.splitlines()[0] == "index,image_url,name"
    (out / "failed.csv").write_text(failed.replace("not allowed", "plate"))

    calls = harness.simulator.stats()["gemini-main"]["calls"]
    again = darkroom(
        *("submit", out / "failed.csv", "--job", "corrected/goods", "--wait", "--every", "0.5"),
        "--json",
    )
    ended = last_line(again)
    assert (ended["state"], ended["succeeded"], ended["failed"]) == ("done", 3, 0), again.stderr
    assert harness.simulator.stats()["gemini-main"]["calls"] == calls + 1
    results = Results(harness.s3, harness.info.outputs["ResultsBucketName"], "corrected/goods")
    sent = [line["instruction_sent"] for line in results.manifest]
    assert sent == ["Draw a mug", "Draw a plate", "Draw a cup"]


def test_two_models_are_compared_on_one_page(
    darkroom: Command, home: dict[str, str], tmp_path: Path
) -> None:
    table = tmp_path / "both.csv"
    table.write_text("instruction\n" + "".join(f"Draw {n} trees\n" for n in range(6)))
    models = "gemini-3-pro-image,gemini-3.1-flash-image"
    submitted = darkroom(
        *("submit", table, "--to", "models", "--try", 2, "--compare", models, "--every", "0.5"),
        env=home,
    )
    assert submitted.exit_code == 0, submitted.stderr
    page = Path(submitted.stdout.splitlines()[-1])
    assert all(f"models/both.{model}" in page.read_text() for model in models.split(","))
    assert page.read_text().count("<img") == 4
