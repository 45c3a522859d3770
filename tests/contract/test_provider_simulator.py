"""The simulated providers are as strict as the real ones, and count correctly."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom_local import stack
from darkroom_local.providers import Simulator, running
from darkroom_local.providers.api import ImageRequest
from darkroom_local.providers.config import Config, Fault, Lognormal, SimulatedEndpoint, When
from darkroom_local.providers.endpoint import (
    EndpointState,
    FaultScript,
    SlidingWindow,
    max_in_window,
)
from tests.contract.provider_harness import left_half_mask, photo
from tests.fakes.elapsed import shortest_seconds

EDITS = "/x/v1/images/edits"
GENERATIONS = "/x/v1/images/generations"
GENERATE_CONTENT = "/x/v1beta/models/gemini-3-pro-image:generateContent"
JPEG = photo().data
PNG = photo(kind="PNG").data
File = tuple[str, str, bytes]  # field, mime type, data
IMAGE: File = ("image[]", "image/jpeg", JPEG)
IMAGE_PNG: File = ("image", "image/png", PNG)
SMALL_MASK: File = ("mask", "image/png", left_half_mask(32, 32).data)
TEXT = {"text": "a red boat"}
REQUEST = ImageRequest(prompt="Make it RED", key="k", model="m")
COMMAND = [sys.executable, "-m", "darkroom_local.providers", "--config"]
Answer = tuple[int, dict[str, Any]]


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with running() as simulator:
        yield simulator


@pytest.fixture(autouse=True)
def _restarted(simulator: Simulator) -> None:
    simulator.configure({"endpoints": {"x": {}}})


def restart(simulator: Simulator, **endpoint: Any) -> None:
    simulator.configure({"endpoints": {"x": {"mode": "fast", **endpoint}, "y": {}}})


def post(simulator: Simulator, path: str, key: str = "k", **request: Any) -> Answer:
    headers = {"Authorization": f"Bearer {key}", "x-goog-api-key": key} if key else {}
    response = httpx2.post(
        simulator.url + path, headers=headers, timeout=20, verify=False, **request
    )
    return response.status_code, response.json()


def edit(simulator: Simulator, *files: File, **fields: str) -> Answer:
    fields = {"model": "gpt-image-1.5", "prompt": "make it red", **fields}
    parts: list[Any] = [(name, (None, value)) for name, value in fields.items()]
    parts += [(name, ("f", data, mime)) for name, mime, data in files]
    return post(simulator, EDITS, files=parts)


def generate(simulator: Simulator, **fields: Any) -> Answer:
    body = {"model": "gpt-image-1.5", "prompt": "a red boat", **fields}
    return post(simulator, GENERATIONS, json=body)


def content(
    simulator: Simulator, *parts: dict[str, Any], path: str = GENERATE_CONTENT, **config: Any
) -> Answer:
    contents = [{"parts": [*parts] or [TEXT]}]
    settings = {"imageConfig": config} if config else {}
    return post(simulator, path, json={"contents": contents, "generationConfig": settings})


def inline(mime: str, data: bytes) -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime, "data": base64.b64encode(data).decode()}}


def test_openai_accepts_a_well_formed_edit(simulator: Simulator) -> None:
    status, answer = edit(simulator, IMAGE, ("image[]", "image/png", PNG))
    assert status == 200
    assert base64.b64decode(answer["data"][0]["b64_json"]).startswith(b"\x89PNG")
    assert answer["usage"]["input_tokens_details"]["image_tokens"] == 2 * 323


@pytest.mark.parametrize(
    ("files", "fields", "code"),
    [
        ([("image", "application/octet-stream", JPEG)], {}, "unsupported_file_mimetype"),
        ([("image", "image/png", JPEG)], {}, "invalid_image_file"),
        ([("image", "image/jpeg", JPEG[:200])], {}, "invalid_image_file"),
        ([], {}, "missing_required_parameter"),
        ([IMAGE], {"prompt": ""}, "missing_required_parameter"),
        ([IMAGE] * 17, {}, "invalid_value"),
        ([IMAGE], {"response_format": "b64_json"}, "unknown_parameter"),
        ([IMAGE], {"aspect_ratio": "1:1"}, "unknown_parameter"),
        ([IMAGE, ("photo", "image/png", PNG)], {}, "unknown_parameter"),
        ([IMAGE], {"size": "1920x1088"}, "invalid_value"),
        ([IMAGE], {"quality": "hd"}, "invalid_value"),
        ([IMAGE], {"n": "11"}, "invalid_value"),
        ([IMAGE], {"background": "transparent", "output_format": "jpeg"}, "invalid_value"),
        ([IMAGE], {"model": "gpt-image-2", "input_fidelity": "high"}, "unknown_parameter"),
        ([IMAGE], {"model": "gpt-image-2", "size": "1000x1000"}, "invalid_value"),
        ([IMAGE], {"model": "gpt-image-2", "size": "3840x3840"}, "invalid_value"),
        ([IMAGE, ("mask", "image/png", PNG)], {}, "invalid_mask_image_format"),
        ([IMAGE, SMALL_MASK], {}, "invalid_mask_size"),
        ([IMAGE], {"model": "gpt-image-99"}, "invalid_value"),
        ([IMAGE_PNG], {"model": "dall-e-3"}, "invalid_value"),
        ([("image", "image/jpeg", JPEG)], {"model": "dall-e-2"}, "unsupported_file_mimetype"),
        ([IMAGE_PNG], {"model": "dall-e-2"}, "invalid_value"),
        ([("image[]", "image/png", PNG)], {"model": "dall-e-2"}, "unknown_parameter"),
    ],
)
def test_openai_rejects_what_the_real_api_rejects(
    simulator: Simulator, files: list[File], fields: dict[str, str], code: str
) -> None:
    status, answer = edit(simulator, *files, **fields)
    assert status in {400, 404}
    assert answer["error"]["code"] == code


def test_openai_rejects_settings_of_another_model(simulator: Simulator) -> None:
    for fields in (
        {"response_format": "b64_json"},
        {"size": "1792x1024"},
        {"style": "vivid"},
        {"prompt": "x" * 32_001},
        {"model": "dall-e-3", "n": 2},
        {"model": "dall-e-2", "output_format": "png"},
    ):
        assert generate(simulator, **fields)[0] == 400, fields


def test_dall_e_returns_a_url_unless_base64_is_requested(simulator: Simulator) -> None:
    assert "url" in generate(simulator, model="dall-e-3")[1]["data"][0]
    _, answer = generate(simulator, model="dall-e-3", response_format="b64_json")
    assert "b64_json" in answer["data"][0]


@pytest.mark.parametrize("spelling", [("inlineData", "mimeType"), ("inline_data", "mime_type")])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_gemini_accepts_both_spellings_and_both_alphabets(
    simulator: Simulator, spelling: tuple[str, str], encode: Any
) -> None:
    inline, mime = spelling
    part = {inline: {mime: "image/jpeg", "data": encode(JPEG).decode()}}
    status, answer = content(simulator, {"text": "red"}, part)
    assert status == 200
    parts = answer["candidates"][0]["content"]["parts"]
    assert base64.b64decode(parts[0]["inlineData"]["data"])


@pytest.mark.parametrize(
    ("parts", "config"),
    [
        ([TEXT, inline("application/octet-stream", JPEG)], {}),
        ([TEXT, inline("image/png", JPEG)], {}),
        ([TEXT, inline("image/jpeg", b"no")], {}),
        ([TEXT, {"inlineData": {"mimeType": "image/png", "data": "***"}}], {}),
        ([inline("image/jpeg", JPEG)], {}),
        ([TEXT, {}], {}),
        ([TEXT, *[inline("image/jpeg", JPEG)] * 15], {}),
        ([TEXT], {"aspectRatio": "7:5"}),
        ([TEXT], {"imageSize": "8K"}),
        ([TEXT], {"outputMimeType": "image/png"}),
    ],
)
def test_gemini_rejects_what_the_real_api_rejects(
    simulator: Simulator, parts: list[dict[str, Any]], config: dict[str, str]
) -> None:
    status, answer = content(simulator, *parts, **config)
    assert (status, answer["error"]["status"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("body", "seconds", "problem"),
    [
        ({"content": []}, "30", 'Unknown name "content"'),
        ({"generationConfig": {"imageSizes": 1}}, "30", 'Unknown name "imageSizes"'),
        ({"generationConfig": {"responseModalities": ["TEXT"]}}, "30", "modalities"),
        ({"generationConfig": {"thinkingConfig": {"thinkingLevel": "LOW"}}}, "30", "level LOW"),
        ({"generationConfig": {"thinkingConfig": {"level": "LOW"}}}, "30", 'Unknown name "level"'),
        ({"serviceTier": "fast"}, "30", "service_tier"),
        ({}, "9", "Manually set deadline 9s is too short. Minimum allowed deadline is 10s."),
    ],
)
def test_gemini_rejects_unknown_fields_texts_and_short_deadlines(
    simulator: Simulator, body: dict[str, Any], seconds: str, problem: str
) -> None:
    request = {"contents": [{"parts": [TEXT]}], **body}
    headers = {"x-goog-api-key": "k", "x-server-timeout": seconds}
    url = simulator.url + GENERATE_CONTENT
    response = httpx2.post(url, headers=headers, json=request, verify=False)
    assert response.status_code == 400
    assert problem in response.json()["error"]["message"]


def test_a_retired_model_and_an_invalid_image_have_openais_own_bodies(
    simulator: Simulator,
) -> None:
    restart(simulator, retired_models=["gpt-image-1.5"], mode="effects")
    gone = {
        "message": "The model 'gpt-image-1.5' does not exist.",
        "type": "image_generation_user_error",
        "param": "model",
        "code": "invalid_value",
    }
    assert edit(simulator, IMAGE) == (400, {"error": gone})
    _, answer = edit(simulator, ("image[]", "image/png", JPEG), model="gpt-image-2")
    assert answer["error"]["type"] == "image_generation_user_error"
    assert answer["error"]["code"] == "invalid_image_file"


def test_images_are_counted_by_the_minute_and_a_call_above_the_limit_never_passes(
    simulator: Simulator,
) -> None:
    restart(simulator, images_per_minute=3)
    assert [generate(simulator, n=n)[0] for n in (2, 2, 1, 1)] == [200, 429, 200, 429]
    status, answer = generate(simulator, n=4)
    assert status == 429
    assert "Limit 3, Used 3, Requested 4" in answer["error"]["message"]
    assert "try again" not in answer["error"]["message"]


def test_azure_serves_its_deployments_only(simulator: Simulator) -> None:
    restart(simulator, deployments={"my-images": "gpt-image-2"})
    path = "/x/openai/deployments/{}/images/generations?api-version=2026-10-01"
    body = {"prompt": "a red boat"}
    assert post(simulator, path.format("my-images"), json=body)[0] == 200
    status, answer = post(simulator, path.format("gpt-image-2"), json=body)
    assert (status, answer["error"]["code"]) == (404, "DeploymentNotFound")


def test_gemini_rejects_a_resolution_for_a_model_without_one(simulator: Simulator) -> None:
    path = GENERATE_CONTENT.replace("gemini-3-pro-image", "gemini-2.5-flash-image")
    assert content(simulator, path=path, imageSize="2K")[0] == 400
    assert content(simulator, path=path, aspectRatio="2:3")[0] == 200


def test_call_without_a_key_is_rejected(simulator: Simulator) -> None:
    body = {"model": "gpt-image-1.5", "prompt": "x"}
    assert post(simulator, GENERATIONS, key="", json=body)[0] == 401
    assert simulator.stats()["x"]["paid_images"] == 0


@given(st.lists(st.floats(0, 300), max_size=80).map(sorted), st.integers(1, 6))
def test_window_is_never_exceeded_and_rejects_only_when_it_is_full(
    arrivals: list[float], limit: int
) -> None:
    window, allowed = SlidingWindow(limit, 60), list[float]()
    for t in arrivals:
        wait = window.take(t)
        if wait == 0:
            allowed.append(t)
        else:
            assert len([a for a in allowed if a > t - 60]) == limit
            assert 0 < wait <= 60.001
    assert max_in_window(allowed, 60) <= limit


def test_limit_states_the_time_to_wait_and_counts_rejections(simulator: Simulator) -> None:
    restart(simulator, requests_per_minute=2)
    assert [content(simulator)[0] for _ in range(5)] == [200, 200, 429, 429, 429]
    stats = simulator.stats()["x"]
    assert [stats[k] for k in ("calls", "allowed", "refused", "paid_images")] == [5, 2, 3, 2]
    assert stats["max_in_window"] == len(stats["arrivals"]) == 5
    assert len(stats["allowed_arrivals"]) == 2
    details = content(simulator)[1]["error"]["details"]
    assert 0 < float(details[1]["retryDelay"].removesuffix("s")) <= 60


def test_daily_limit_names_the_day(simulator: Simulator) -> None:
    restart(simulator, requests_per_day=1)
    content(simulator)
    violations = content(simulator)[1]["error"]["details"][0]["violations"]
    assert violations[0]["quotaId"] == "GenerateRequestsPerDayPerProjectPerModel"


def test_endpoints_have_separate_limits_and_counts(simulator: Simulator) -> None:
    restart(simulator, requests_per_minute=1)
    content(simulator)
    assert content(simulator)[0] == 429
    assert content(simulator, path=GENERATE_CONTENT.replace("/x/", "/y/"))[0] == 200
    assert simulator.stats()["y"]["calls"] == 1


def test_calls_and_images_are_counted_by_row_marker(simulator: Simulator) -> None:
    for row in ("000001", "000002", "000001"):
        content(simulator, {"text": f"make it red [row:{row}]"})
    generate(simulator, prompt="blue [row:7]", n=3)
    stats = simulator.stats()["x"]
    assert stats["calls_by_marker"] == {"000001": 2, "000002": 1, "7": 1}
    assert stats["paid_by_marker"] == {"000001": 2, "000002": 1, "7": 3}


def test_image_that_never_arrived_is_billed(simulator: Simulator) -> None:
    restart(simulator, faults=[{"kind": "drop_after", "when": {"count": 1}}])
    with pytest.raises(httpx2.RemoteProtocolError):
        content(simulator, {"text": "x [row:1]"})
    assert simulator.stats()["x"]["paid_by_marker"] == {"1": 1}


def fault(**when: Any) -> Fault:
    return Fault.model_validate({"kind": "server_error", "when": when})


@pytest.mark.parametrize(
    ("when", "times", "applied"),
    [
        ({"prompt_contains": "it red"}, [0], [True]),
        ({"prompt_contains": "blue"}, [0], [False]),
        ({"key": "k"}, [0], [True]),
        ({"key": "j"}, [0], [False]),
        ({"model": "n"}, [0], [False]),
        (
            {"from_second": 10, "until_second": 20},
            [0, 9.9, 10, 19.9, 20],
            [False, False, True, True, False],
        ),
        ({"skip": 1, "count": 2}, [0] * 5, [False, True, True, False, False]),
    ],
)
def test_fault_applies_by_prompt_key_model_time_or_count(
    when: dict[str, Any], times: list[float], applied: list[bool]
) -> None:
    faults = FaultScript((fault(**when),), "s")
    assert [bool(faults.next_fault(REQUEST, t)) for t in times] == applied


def test_rate_of_faults_is_reproducible() -> None:
    def drawn(seed: str) -> list[bool]:
        faults = FaultScript((fault(rate=0.3),), seed)
        return [bool(faults.next_fault(REQUEST, 0)) for _ in range(1000)]

    assert drawn("a") == drawn("a")
    assert drawn("a") != drawn("b")
    assert 250 < sum(drawn("a")) < 350


def test_first_matching_fault_is_used() -> None:
    faults = (fault(prompt_contains="red", count=1), Fault(kind="drop", when=When()))
    both = FaultScript(faults, "s")
    used = [both.next_fault(REQUEST, 0) for _ in range(2)]
    assert [f.kind.value for f in used if f] == ["server_error", "drop"]


def test_invalid_configuration_is_rejected_and_changes_nothing(simulator: Simulator) -> None:
    with pytest.raises(ValueError, match="requests_per_minut"):
        restart(simulator, requests_per_minut=2)
    assert post(simulator, "/_sim/configure", json={"endpoints": {"x": {"no": 1}}})[0] == 400
    assert "x" in simulator.stats()


def test_endpoint_that_is_not_configured_is_not_found(simulator: Simulator) -> None:
    path = GENERATE_CONTENT.replace("/x/", "/nowhere/")
    assert content(simulator, path=path)[0] == 404


def test_latency_is_at_least_the_configured_one(simulator: Simulator) -> None:
    restart(simulator, latency={"kind": "fixed", "seconds": 0.15})
    statuses: list[int] = []
    elapsed = shortest_seconds(lambda: statuses.append(content(simulator)[0]), 1)
    assert 0.15 <= elapsed < 1
    assert set(statuses) == {200}


def test_lognormal_latency_has_its_median_and_maximum() -> None:
    shape = Lognormal(median=2, sigma=0.5, maximum=6)
    state = EndpointState("x", SimulatedEndpoint(latency=shape), 1, 0.0)
    drawn = sorted(state.latency() for _ in range(2001))
    assert drawn[1000] == pytest.approx(2, rel=0.1)
    assert drawn[-1] == 6


def test_simulator_starts_from_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(Config(endpoints={"only": SimulatedEndpoint()}).model_dump_json())
    with subprocess.Popen([*COMMAND, config], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = json.loads(process.stdout.readline())
            assert line["endpoints"] == ["only"]
            assert Simulator(line["url"]).stats()["only"]["calls"] == 0
        finally:
            process.terminate()
            assert process.wait(10) == 0


def test_invalid_configuration_file_is_reported_on_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text('{"endpoint": {}}')
    command = [*COMMAND, str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "endpoint" in done.stderr


@pytest.mark.parametrize(
    ("key", "model", "status"),
    [
        ("simulated-key-of-gemini-main", "gemini-3-pro-image", 200),
        ("simulated-key-of-gemini-main", "gemini-3-pro-imag", 404),
        ("another-key", "gemini-3-pro-image", 400),
    ],
)
def test_the_one_machine_stack_rejects_keys_and_models_that_it_does_not_know(
    simulator: Simulator, key: str, model: str, status: int
) -> None:
    simulator.configure(stack.DEFAULT_CONFIG.model_dump(mode="json"))
    path = f"/gemini-main/v1beta/models/{model}:generateContent"
    body = {"contents": [{"parts": [TEXT]}]}
    assert post(simulator, path, key, json=body)[0] == status
