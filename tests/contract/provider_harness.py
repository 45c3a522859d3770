"""The real editors with the simulated providers, for the contract tests of both."""

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import cache
from typing import Any

import pytest
from PIL import Image
from pydantic import SecretStr

from darkroom.calls import CallFailed, CallPlan, EditResult, SourceImage
from darkroom.endpoints import Endpoint
from darkroom.images import codec
from darkroom.models.planner import plan_call
from darkroom.providers.gemini import GeminiImageEditor
from darkroom.providers.openai import OpenAIImageEditor
from darkroom.providers.registry import Provider
from darkroom.rows import RowRequest
from darkroom_local.providers import Simulator, running

GEMINI, OPENAI = Provider.GEMINI, Provider.OPENAI
BOTH = [GEMINI, OPENAI]
KEY = "sk-test-abcdefghijklmnop-0123456789"
NAME = "endpoint"
TODAY = date(2026, 11, 21)


@cache
def photo(width: int = 96, height: int = 64, kind: str = "JPEG", name: str = "a") -> SourceImage:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(out, kind)
    return codec.open_source(out.getvalue(), name)


@cache
def left_half_mask(width: int = 96, height: int = 64) -> SourceImage:
    """Transparent in its left half, which is the part to edit."""
    mask = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, width // 2, height))
    out = io.BytesIO()
    mask.save(out, "PNG")
    return codec.open_mask(out.getvalue(), "mask.png")


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@dataclass
class Harness:
    simulator: Simulator
    gemini: GeminiImageEditor = field(default_factory=GeminiImageEditor)
    openai: OpenAIImageEditor = field(default_factory=OpenAIImageEditor)

    def close(self) -> None:
        self.gemini.close()
        self.openai.close()

    def set_up(self, **endpoint: Any) -> None:
        """Resets the endpoint; it returns a fixed image unless `mode="effects"`."""
        self.simulator.configure({"endpoints": {NAME: {"mode": "fast", **endpoint}}})

    def fault(self, **fault: Any) -> None:
        """Calls may have shorter time-outs than Gemini's API accepts."""
        self.set_up(faults=[fault], min_server_timeout=0)

    def stats(self) -> dict[str, Any]:
        stats: dict[str, Any] = self.simulator.stats()[NAME]
        return stats

    def endpoint(self, provider: Provider, **fields: Any) -> Endpoint:
        defaults = {"name": "e", "api_keys": (KEY,), "base_url": self.simulator.base_url(NAME)}
        return Endpoint.model_validate({"provider": provider, **defaults, **fields})

    def call(
        self,
        provider: Provider,
        *images: SourceImage,
        mask: SourceImage | None = None,
        key: str = KEY,
        timeout: float = 30,
        endpoint: Endpoint | None = None,
        **fields: Any,
    ) -> EditResult:
        """`fields` as for RowRequest."""
        endpoint = endpoint or self.endpoint(provider)
        plan = self.plan(provider, *images, mask=mask, endpoint=endpoint, **fields)
        editor = self.gemini if provider is GEMINI else self.openai
        return editor.edit(plan, endpoint, SecretStr(key), timeout)

    def plan(
        self,
        provider: Provider,
        *images: SourceImage,
        mask: SourceImage | None = None,
        endpoint: Endpoint | None = None,
        **fields: Any,
    ) -> CallPlan:
        request = RowRequest.model_validate({"instruction": "make it warm", **fields})
        return plan_call(request, images, mask, endpoint or self.endpoint(provider), TODAY)

    def failure(self, provider: Provider, *images: SourceImage, **options: Any) -> CallFailed:
        with pytest.raises(CallFailed) as caught:
            self.call(provider, *images, **options)
        return caught.value


@contextmanager
def running_harness() -> Iterator[Harness]:
    with running() as simulator, closing(Harness(simulator)) as harness:
        yield harness
