"""The corpus of providers' answers, answers.yaml: each with its source and what must come of it."""

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx2
import yaml
from PIL import Image
from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, Outcome
from darkroom.endpoints import Endpoint
from darkroom.providers.adapter import SdkImageEditor
from darkroom.providers.gemini import GeminiImageEditor
from darkroom.providers.http import new_client
from darkroom.providers.openai import OpenAIImageEditor
from darkroom.providers.registry import Provider
from tests.corpus.images import saved

KEY = "sk-corpus-0123456789abcdefghij"
AZURE = "azure"  # OpenAI's API at Azure
_FILE = Path(__file__).with_name("answers.yaml")
_REPEATED = re.compile(r"«(.+?)×(\d+)»")  # noqa: RUF001 - the sign that no answer has otherwise


@dataclass(frozen=True)
class Answer:
    """One HTTP response, and the call's outcome. `body` is JSON; without it, `text` is sent."""

    provider: str
    source: str
    status: int
    outcome: Outcome
    detail: str = ""
    body: Any = None
    text: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    model_of_row: bool = False
    flex: bool = False
    flags: tuple[str, ...] = ()  # the fields of CallFailed that are true
    wait: float | None = None
    limits: Mapping[str, int] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """The response for people, shortened."""
        text = self.text if self.text is not None else json.dumps(self.body, ensure_ascii=False)
        text = "".join(c if c.isprintable() else "?" for c in text)
        return text if len(text) <= 160 else f"{text[:158]} …"

    def content(self) -> bytes:
        text = self.text if self.text is not None else json.dumps(self.body, ensure_ascii=False)
        return _repeated(text).replace("<PNG>", _png()).replace("<KEY>", KEY).encode()

    def response(self) -> httpx2.Response:
        is_page = self.text is not None and not self.text.startswith(("{", "[", "«"))
        kind = "text/html" if is_page else "application/json"
        headers = [(k.encode(), _repeated(v).encode()) for k, v in self.headers.items()]
        headers.append((b"content-type", kind.encode()))
        return httpx2.Response(self.status, headers=headers, content=self.content())

    def endpoint(self) -> Endpoint:
        fields: dict[str, Any] = {"name": "e", "api_keys": [KEY], "provider": Provider.OPENAI}
        if self.provider == AZURE:
            fields |= {"api_version": "2026-10-01", "base_url": "https://e.openai.azure.com"}
        elif self.provider != Provider.OPENAI:
            fields |= {"provider": self.provider, "service_tier": "flex" if self.flex else None}
        return Endpoint.model_validate(fields)


def _repeated(text: str) -> str:
    return _REPEATED.sub(lambda found: found[1] * int(found[2]), text)


@cache
def _png() -> str:
    return base64.b64encode(saved(Image.new("RGB", (8, 8)), "PNG")).decode()


@cache
def sources() -> Mapping[str, str]:
    """Where the answers were seen, by the names that they give."""
    found: Mapping[str, str] = _read()["sources"]
    return found


@cache
def answers() -> tuple[Answer, ...]:
    return tuple(
        Answer(
            **{
                **fields,
                "outcome": Outcome(fields["outcome"]),
                "detail": _repeated(fields["detail"]),
            }
        )
        for fields in _read()["answers"]
    )


@cache
def _read() -> Any:
    return yaml.load(_FILE.read_text(), yaml.CSafeLoader)


class ScriptedTransport(httpx2.BaseTransport):
    """In place of the network: answers every request with `response`."""

    response: httpx2.Response

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return self.response


@cache
def _editor(provider: Provider) -> tuple[SdkImageEditor[Any], ScriptedTransport]:
    """The real editor of a provider, with its SDK imported."""
    transport = ScriptedTransport()
    kind = GeminiImageEditor if provider is Provider.GEMINI else OpenAIImageEditor
    editor = kind(new_client(transport))
    import_module(editor.sdk)
    return editor, transport


def outcome_of(
    response: httpx2.Response, endpoint: Endpoint, *, model_of_row: bool = False
) -> EditResult | CallFailed:
    """What a call to the endpoint ends with when it is answered so. Any other error is raised."""
    plan = CallPlan(endpoint.provider, endpoint.model, "make it warm", model_of_row=model_of_row)
    editor, transport = _editor(endpoint.provider)
    transport.response = response
    try:
        return editor.edit(plan, endpoint, SecretStr(KEY), 30)
    except CallFailed as failed:
        return failed
