"""What the simulated image APIs share: a parsed request, and the rules of their models."""

import base64
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field

from PIL import Image

from darkroom_local.providers.http import Response

MIB = 1024 * 1024
BROKEN_IMAGE = b"\x89PNG no"
_MARKER = re.compile(r"\[row:([^\]]{1,64})\]")


class RequestRejected(Exception):
    """A request that the real API would reject with `response`."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


@dataclass(frozen=True, slots=True)
class InputImage:
    data: bytes = field(repr=False)
    mime: str

    def decode(self) -> Image.Image:
        """Decode in full, and only as the declared type. Raises ValueError."""
        image_format = self.mime.removeprefix("image/").upper()
        try:
            decoded = Image.open(io.BytesIO(self.data), formats=[image_format])
            decoded.load()
        except (OSError, ValueError, SyntaxError, KeyError) as error:
            raise ValueError(f"not a {image_format}") from error
        return decoded


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """A parsed request of either API. `size` is None when the provider chooses."""

    prompt: str
    key: str
    model: str
    images: tuple[InputImage, ...] = ()
    mask: InputImage | None = None
    size: tuple[int, int] | None = None
    resolution: str | None = None  # Gemini's imageSize
    n: int = 1
    quality: str = "auto"
    output_format: str = "png"  # png, jpeg, webp
    transparent: bool = False
    as_url: bool = False  # DALL-E, unless base64 is requested
    service_tier: str = "standard"  # Gemini: or flex, priority

    @property
    def markers(self) -> list[str]:
        """`[row:000017]` in an instruction names the row in the statistics."""
        return _MARKER.findall(self.prompt)[:1]


class ModelRules[Rules](ABC):
    """The rules of a format's models, by a pattern of their names; the first match counts."""

    rules: tuple[tuple[str, Rules], ...]

    def check_not_retired(self, model: str, retired: Collection[str]) -> None:
        """Raises RequestRejected."""
        if model in retired:
            raise RequestRejected(self.model_not_found(model))

    def rules_for(self, model: str) -> Rules:
        """Raises RequestRejected for an unknown model."""
        base_name = re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model)  # without the date of a snapshot
        for pattern, rules in self.rules:
            if re.fullmatch(pattern, base_name):
                return rules
        raise RequestRejected(self.model_not_found(model))

    @abstractmethod
    def model_not_found(self, model: str) -> Response: ...


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def text_tokens(text: str) -> int:
    return max(1, len(re.findall(r"\w+|[^\w\s]", text)) * 4 // 3)


def retry_after_header(hint: str, seconds: float) -> dict[str, str]:
    return {"retry-after": f"{seconds:.0f}"} if hint == "header" else {}
