"""What a new user meets in the first hour: the command in a terminal, on a deployed stack.

The stack starts with a misspelt model; it is corrected to a rejected key, then to a good one.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from darkroom_local import stack
from darkroom_local.processes import ROOT, wait_until
from darkroom_local.stack import DEFAULT_CONFIG, endpoints_secret
from tests.e2e.harness import Results, StackHarness
from tests.e2e.terminal import Ended, run_in_terminal

pytestmark = pytest.mark.e2e
MODEL, MISSPELT = "gemini-3-pro-image", "gemini-3-pro-imag"
WIDE, NARROW = {"COLUMNS": "240"}, {"COLUMNS": "60", "NO_COLOR": "1"}
WAIT = ("--wait", "--every", "0.5")
Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def harness() -> Iterator[StackHarness]:
    overrides: dict[str, dict[str, object]] = {
        "gemini-main": {"model": MISSPELT},
        "openai-main": {"weight": 0},
    }
    with stack.running(stack="darkroom-first", overrides=overrides) as info:
        yield StackHarness(info)


@pytest.fixture(scope="module")
def darkroom(harness: StackHarness, tmp_path_factory: pytest.TempPathFactory) -> Command:
    home = tmp_path_factory.mktemp("home")
    user = harness.info.environment() | {"HOME": str(home), "BROWSER": "true"}

    def run(
        *arguments: object,
        env: Mapping[str, str] = WIDE,
        answers: Mapping[str, str] | None = None,
    ) -> Ended:
        return run_in_terminal(*arguments, env=user | dict(env), answers=answers)

    return run


@pytest.fixture(scope="module")
def push(
    harness: StackHarness, darkroom: Command, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Ended]:
    file = tmp_path_factory.mktemp("secret") / "endpoints.json"

    def push(**gemini: object) -> Ended:
        secret = endpoints_secret(
            str(harness.info.providers_url), DEFAULT_CONFIG, {"gemini-main": gemini}
        )
        file.write_text(json.dumps(secret))
        return darkroom("endpoints", "push", file)

    return push


def photos_in(folder: Path, count: int = 3) -> Path:
    (folder / "photos").mkdir(parents=True)
    for number in range(count):
        path = folder / f"photos/IMG_{number}.jpg"
        Image.new("RGB", (64, 48), (number * 40, 90, 120)).save(path)
    return folder


def table(folder: Path, name: str, *rows: str, header: str = "index,image_url,instruction") -> Path:
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return folder / name


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return photos_in(tmp_path / "shop")


class FirstJobs:
    """Screens of the way from a misspelt model and a wrong key to a stack that works."""

    waiting: Ended
    shown: Ended
    listed: Ended
    corrected: Ended
    by_fallback: Ended


@pytest.fixture(scope="module")
def first(
    darkroom: Command, push: Callable[..., Ended], tmp_path_factory: pytest.TempPathFactory
) -> FirstJobs:
    folder, jobs = photos_in(tmp_path_factory.mktemp("first")), FirstJobs()
    rows = ("a,photos/IMG_0.jpg,Make it winter", "b,photos/IMG_1.jpg,Make it summer")
    darkroom("submit", table(folder, "model.csv", *rows), "--to", "first")

    def waits() -> bool:
        jobs.waiting = darkroom("status", "first/model")
        return "waiting" in jobs.waiting.text

    assert wait_until(waits, 120, 0.5), jobs.waiting.text
    jobs.shown, jobs.listed = darkroom("endpoints", "show"), darkroom("list", "first/model")
    jobs.corrected = push(api_keys=["a-wrong-key"])
    key = table(folder, "key.csv", *rows)
    jobs.by_fallback = darkroom("submit", key, "--to", "first", *WAIT)
    push()
    return jobs


def test_a_misspelt_model_is_named_wherever_a_key_would_be(first: FirstJobs) -> None:
    waiting = first.waiting.text
    assert f"model {MISSPELT} of gemini-main was not found" in waiting
    assert f"name another model, such as {MODEL}, in gemini-main" in waiting
    assert "key" not in waiting
    assert f"(model {MISSPELT} not found, paused for" in first.shown.text
    assert "state out of service while its keys are paused" in first.shown.text
    assert f"did you mean {MODEL}?" in first.shown.text
    assert "running, waiting" in first.listed.text
    assert f"first/model is waiting: model {MISSPELT} of gemini-main" in first.listed.text


def test_a_job_with_a_misspelt_model_finishes_after_the_push(
    first: FirstJobs, darkroom: Command
) -> None:
    assert "Ended the cooldowns of gemini-main." in first.corrected.text
    ended = darkroom("status", "first/model", "--watch", "--every", "0.5")
    assert ended.exit_code == 0, ended.screen
    assert "succeeded 2" in ended.text
    assert "dead 0" in ended.text


def test_push_and_show_say_until_when_the_previous_secret_may_be_used(
    first: FirstJobs, push: Callable[..., Ended], darkroom: Command
) -> None:
    # That workers keep to these 60 s: tests/unit/test_secret.py, on a virtual clock.
    pushed = r"in use by all workers by \d\d:\d\d:\d\d\. Until then some may still use the previous"
    assert re.search(pushed, first.corrected.text)
    push()
    shown = darkroom("endpoints", "show")
    assert re.search(r"The secret was pushed at \d\d:\d\d:\d\d: " + pushed, shown.text)


def test_a_rejected_key_is_not_silent(
    first: FirstJobs, darkroom: Command, harness: StackHarness
) -> None:
    results = Results(harness.s3, harness.info.outputs["ResultsBucketName"], "first/key")
    fingerprint = r"\([0-9a-f]{12}\)"
    sentence = f"All images came from the fallback: gemini-main rejected its key {fingerprint}. See"
    assert first.by_fallback.exit_code == 0
    gallery = " ".join(results.read("report.html").decode().split())
    for text in (
        first.by_fallback.text,
        darkroom("status", "first/key").text,
        results.summary["fallback"]["note"],
        gallery,
    ):
        assert re.search(sentence, text), text


# The file, and a part of the only error.
MISTAKES: Sequence[tuple[Mapping[str, Any], str]] = (
    ({"request_per_minute": 5}, "no such field, did you mean requests_per_minute?"),
    ({"api_keys": None, "api_key": "abcd1234"}, "no such field, did you mean api_keys?"),
    ({"api_keys": "abcd1234"}, 'api_keys: write a list: ["…"].'),
    ({"provider": "gemni"}, "provider: input should be 'gemini' or 'openai'."),
    ({"api_keys": ["abcd\n1234"]}, "contains a blank, a line break or a character that no key has"),
    ({"model": "gpt-image-1"}, "the model gpt-image-1 is OpenAI's and the provider is Gemini."),
)


@pytest.mark.parametrize(("fields", "expected"), MISTAKES)
def test_a_mistake_in_the_endpoints_is_one_error_with_the_remedy(
    darkroom: Command, tmp_path: Path, fields: Mapping[str, Any], expected: str
) -> None:
    endpoint = {"name": "main", "provider": "gemini", "api_keys": ["abcd1234"]} | dict(fields)
    given = {name: value for name, value in endpoint.items() if value is not None}
    (tmp_path / "e.json").write_text(json.dumps({"endpoints": [given]}))
    pushed = darkroom("endpoints", "push", tmp_path / "e.json", "--dry-run")
    assert pushed.exit_code == 1
    assert expected in pushed.text
    assert ";" not in pushed.text
    assert not pushed.text.endswith("?.")
    assert "abcd" not in pushed.text


def test_the_keys_of_the_readme_are_placeholders(darkroom: Command, tmp_path: Path) -> None:
    example = re.search(r"```json\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    (tmp_path / "e.json").write_text(example[1])
    pushed = darkroom("endpoints", "push", tmp_path / "e.json", "--dry-run")
    assert pushed.exit_code == 1
    assert "is a placeholder of an example, put your key in its place" in pushed.text


def test_the_environment_can_hold_two_quotas_and_misnamed_variables_are_named(
    darkroom: Command,
) -> None:
    env = {"GEMINI_API_KEYS": "abcd1234;efgh5678", "OPENAI_KEY": "ijkl9012", "GEMINI_RPM": "5"}
    pushed = darkroom("endpoints", "push", "--from-env", "--dry-run", env=WIDE | env)
    assert "Would push 2 endpoints" in pushed.text
    assert "OPENAI_KEY is not used: did you mean OPENAI_API_KEYS?" in pushed.text
    assert "GEMINI_RPM is not used: did you mean GEMINI_RATE_LIMIT?" in pushed.text
    (alone,) = [name for name in env if name == "OPENAI_KEY"]
    without = darkroom("endpoints", "push", "--from-env", "--dry-run", env=WIDE | {alone: "k"})
    assert without.exit_code == 1
    assert "OPENAI_KEY is not used: did you mean OPENAI_API_KEYS?" in without.text


def test_status_shows_the_cost_of_this_upload_of_all_and_the_budget(
    first: FirstJobs, darkroom: Command, shop: Path
) -> None:
    row = "a,photos/IMG_0.jpg,Make it {}"
    limited = (*WAIT, "--to", "money", "--budget-usd", 3)
    darkroom("submit", table(shop, "cost.csv", row.format("red")), *limited)
    again = darkroom("submit", table(shop, "cost.csv", row.format("blue")), *limited, "--yes")
    amount = r"\$0\.\d\d+"
    cost = rf"cost {amount} this upload, {amount} in all, budget \$3\.00"
    assert re.search(cost, again.text), again.text
    assert re.search(cost, darkroom("status", "money/cost").text)
    dropped = darkroom("submit", shop / "cost.csv", "--to", "money", *WAIT)
    assert "The last upload had --budget-usd 3 and this one has no budget" in dropped.text


def test_a_quote_counts_what_cannot_work_and_explains_a_wide_range(
    darkroom: Command, shop: Path
) -> None:
    rows = ("a,photos/IMG_0.jpg,x", "b,photos/none.jpg,x", "c,http://example.com/a.jpg,x")
    csv = table(shop, "quote.csv", *rows)
    endpoints = shop / "openai.json"
    endpoint = {"name": "openai-main", "provider": "openai", "api_keys": ["abcd1234"]}
    endpoints.write_text(json.dumps({"endpoints": [endpoint]}))
    quoted = darkroom("quote", csv, "--endpoints", endpoints, "--budget-usd", 0.3)
    assert "1 image cannot be uploaded from here: 'photos/none.jpg'" in quoted.text
    assert "1 row with an image at http://" in quoted.text
    assert "leave the quality to the provider: --quality medium narrows it" in quoted.text
    assert re.search(r"budget \$0\.30, enough for \d of 3 rows", quoted.text)


def test_a_quote_after_an_upload_is_the_price_of_the_next_one(
    first: FirstJobs, darkroom: Command, shop: Path
) -> None:
    rows = ("a,photos/IMG_0.jpg,Make it red", "b,photos/none.jpg,Make it red")
    csv = table(shop, "again.csv", *rows)
    assert darkroom("submit", csv, "--to", "again", *WAIT).exit_code == 3
    quoted = darkroom("quote", csv, "--to", "again")
    assert "1 done in an earlier upload, not paid for again" in quoted.text
    assert "1 failed in an earlier upload, tried again only with --retry-failed" in quoted.text
    assert re.search(r"cost \$0\.00\b", quoted.text)
    ended = darkroom("submit", csv, "--to", "again", *WAIT)
    assert "submit with --retry-failed to try again" in ended.text


def test_a_failed_row_is_found_by_line_index_and_own_columns(
    first: FirstJobs, darkroom: Command, harness: StackHarness, shop: Path
) -> None:
    rows = ("shoe,photos/none.jpg,x,SKU-7", "hat,photos/IMG_1.jpg,Make it red,SKU-8")
    csv = table(shop, "names.csv", *rows, header="index,image_url,instruction,sku")
    submitted = darkroom("submit", csv, "--to", "names", *WAIT)
    assert submitted.exit_code == 3
    assert "To see which rows and why: darkroom failures names/names" in submitted.text
    failed = darkroom("failures", "names/names")
    assert re.search(r"^ +2 +0 +shoe +failed +bad_image", "\n".join(failed.lines), re.MULTILINE)
    assert "1 row: 1 bad_image." in failed.text
    results = Results(harness.s3, harness.info.outputs["ResultsBucketName"], "names/names")
    gallery = results.read("report.html").decode()
    assert "SKU-7" in gallery
    assert "shoe" in gallery


def test_the_first_steps_say_what_to_run_next(darkroom: Command, tmp_path: Path) -> None:
    # The end of the demo is printed by `make demo`, which .ci/run runs.
    make = shutil.which("make")
    assert make is not None
    done = subprocess.run([make, "setup"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].startswith("Ready: .venv/bin/darkroom --help.")
    unset = dict.fromkeys(("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_REGION"), "")
    nowhere = unset | {"AWS_CONFIG_FILE": os.devnull, "DARKROOM_LOCAL": ""}
    listed = darkroom("list", env=WIDE | nowhere)
    assert listed.exit_code == 1
    assert "No AWS region given" in listed.text
    assert "or add --local for the stack" in listed.text
    assert "darkroom submit --local photos/" in darkroom("--help").text


def test_a_simulated_provider_rejects_a_key_it_does_not_know(
    first: FirstJobs, darkroom: Command, harness: StackHarness, tmp_path: Path
) -> None:
    wrong = {"gemini-main": {"api_keys": ["a-wrong-key"]}}
    secret = endpoints_secret(str(harness.info.providers_url), DEFAULT_CONFIG, wrong)
    (tmp_path / "e.json").write_text(json.dumps(secret))
    checked = darkroom("endpoints", "check", tmp_path / "e.json")
    assert checked.exit_code == 1
    assert "key rejected (API key not valid" in checked.text


def test_nothing_is_started_when_no_row_can_be_edited(
    first: FirstJobs, darkroom: Command, shop: Path
) -> None:
    csv = table(shop, "empty.csv", "a,photos/IMG_0.jpg,", "b,photos/IMG_1.jpg,")
    submitted = darkroom("submit", csv, "--to", "nothing", *WAIT)
    assert submitted.exit_code == 1
    assert "No row can be edited, so nothing was started: line 2 ('a', row 0)" in submitted.text
    assert "has no job nothing/empty" in darkroom("status", "nothing/empty").text


def test_a_retouched_image_is_edited_again_without_losing_the_job(
    first: FirstJobs, darkroom: Command, shop: Path
) -> None:
    rows = ("a,photos/IMG_0.jpg,Make it red", "b,photos/IMG_1.jpg,Make it red")
    submit = ("submit", table(shop, "touch.csv", *rows), "--to", "touch", *WAIT)
    darkroom(*submit)
    Image.new("RGB", (64, 48), "white").save(shop / "photos/IMG_0.jpg")
    warned = darkroom(*submit)
    assert "1 image changed since the last upload" in warned.text
    assert "add --replace-images to edit exactly those rows again" in warned.text
    replaced = darkroom(*submit, "--replace-images", "--yes")
    assert "1 image replaced: 1 row will be edited again." in replaced.text
    assert "succeeded 2 (1 in an earlier upload)" in replaced.text


def test_what_does_not_exist_is_an_error_and_a_short_name_is_found(
    first: FirstJobs, darkroom: Command, harness: StackHarness, shop: Path, tmp_path: Path
) -> None:
    for verb in (("redrive",), ("download",)):
        folder = (tmp_path / "out",) if verb == ("download",) else ()
        missing = darkroom(*verb, "no-such", *folder)
        assert missing.exit_code == 1
        assert "has no job no-such: a job is named after its CSV" in missing.text
    reason = darkroom("failures", "first/model", "--reason", "foo")
    assert reason.exit_code == 2
    assert "There is no reason 'foo'." in reason.text
    assert "No job's name begins with foo" in darkroom("list", "foo").text
    version = harness.put("jobs/long.CSV", b"instruction\nA small boat\n")
    harness.wait("jobs/long", version)
    assert "job jobs/long" in darkroom("status", "long").text


def test_a_redrive_of_all_jobs_asks_unless_nothing_is_dead(
    first: FirstJobs, darkroom: Command, harness: StackHarness
) -> None:
    assert "The dead-letter queue is empty." in darkroom("redrive").text
    queue = harness.info.outputs["DeadLetterQueueUrl"]
    sqs = harness.info.client("sqs")
    sqs.send_message(QueueUrl=queue, MessageBody="not a row")
    try:
        asked = darkroom("redrive", answers={"[y/N]": "n"})
        assert "Return the dead rows of all jobs (1 dead row in all)? [y/N]" in asked.text
        assert asked.exit_code == 1
    finally:
        sqs.purge_queue(QueueUrl=queue)


def test_help_and_docs_use_plain_words(darkroom: Command) -> None:
    assert "Estimate a job's cost and duration" in darkroom("--help").text
    assert "Polling interval in seconds" in darkroom("submit", "--help").text
    page = (ROOT / "docs/csv.md").read_text()
    assert page.index("## In five minutes") < page.index("## The job")


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "first/key"),
        ("failures", "first/key"),
        ("list",),
        ("endpoints", "show"),
        ("redrive", "--dry-run"),
    ],
    ids=" ".join,
)
def test_output_fits_60_columns_without_colours(
    first: FirstJobs, darkroom: Command, arguments: Sequence[str]
) -> None:
    shown = darkroom(*arguments, env=NARROW)
    assert max(map(len, shown.lines)) <= 60, shown.screen
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", shown.screen)


def test_a_row_inserted_at_the_top_pays_for_one_row_only(
    first: FirstJobs, darkroom: Command, shop: Path
) -> None:
    header = "image_url,instruction"
    rows = [f"photos/IMG_{n}.jpg,Make it red" for n in (0, 1)]
    submit = ("--to", "moved", *WAIT)
    darkroom("submit", table(shop, "moved.csv", *rows, header=header), *submit)
    rows.insert(0, "photos/IMG_2.jpg,Make it red")
    csv = table(shop, "moved.csv", *rows, header=header)
    assert "3: 1 to do, 2 done in an earlier upload" in darkroom("quote", csv, "--to", "moved").text
    inserted = darkroom("submit", csv, *submit)
    assert "succeeded 3 (2 in an earlier upload)" in inserted.text
    assert "paid for again" not in inserted.text


def test_rows_are_edited_again_only_after_a_question_that_says_the_price(
    first: FirstJobs, darkroom: Command, shop: Path
) -> None:
    rows, submit = ["a,photos/IMG_0.jpg,Make it red"], ("--to", "again", *WAIT)
    darkroom("submit", table(shop, "again.csv", *rows), *submit)
    changed = table(shop, "again.csv", *(row.replace("red", "blue") for row in rows))
    asked = darkroom("submit", changed, *submit, answers={"Edit 1 row again?": "n"})
    assert asked.exit_code == 1
    assert "1 row edited in an earlier upload" in asked.text
    assert "paid for again" in asked.text
    assert "$0." in asked.text
    assert "Nothing was started." in asked.text


def test_images_are_named_after_the_input_image(
    first: FirstJobs, darkroom: Command, harness: StackHarness, shop: Path
) -> None:
    rows = [f"photos/IMG_{n}.jpg,Make it red" for n in (0, 1)]
    csv = table(shop, "named.csv", *rows, header="image_url,instruction")
    darkroom("submit", csv, "--to", "named", *WAIT)
    bucket = harness.info.outputs["ResultsBucketName"]
    manifest = Results(harness.s3, bucket, "named/named").manifest
    assert [line["output"] for line in manifest] == [
        f"named/named/images/IMG_{n}.png" for n in (0, 1)
    ]
