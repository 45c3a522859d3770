"""What the simulated image APIs share: a parsed request, and the interface of an API format."""

import base64
import io
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from PIL import Image

from darkroom_local.providers.config import Fault
from darkroom_local.providers.http import Request, Response

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

    @property
    def marker(self) -> str | None:
        """`[row:000017]` in an instruction names the row in the statistics."""
        match = _MARKER.search(self.prompt)
        return match[1] if match else None


class ImageApi[Rules](ABC):
    """One provider's API format."""

    label: str
    invalid_key_status: int
    rules: tuple[tuple[str, Rules], ...]  # by a pattern of the model's name, the first match counts

    def rules_for(self, model: str) -> Rules:
        """Raises RequestRejected for an unknown model."""
        for pattern, rules in self.rules:
            if re.fullmatch(pattern, base_model(model)):
                return rules
        raise RequestRejected(self.model_not_found(model))

    @abstractmethod
    def key(self, request: Request) -> str: ...

    @abstractmethod
    def parse(self, request: Request, path: str, *, decode: bool) -> ImageRequest:
        """Parse and check a request like the real API. Raises RequestRejected."""

    @abstractmethod
    def output_size(self, request: ImageRequest) -> tuple[int, int]:
        """Pixels of the output; by the first image's shape when the provider chooses."""

    @abstractmethod
    def success(self, request: ImageRequest, images: list[bytes], *, thoughts: bool) -> Response:
        """The response with the output images."""

    @abstractmethod
    def rate_limited(self, hint: str, retry_after: float, per: str) -> Response: ...

    @abstractmethod
    def model_not_found(self, model: str) -> Response: ...

    @abstractmethod
    def invalid_key(self, status: int) -> Response: ...

    @abstractmethod
    def failure(self, fault: Fault, request: ImageRequest) -> Response:
        """The response to a configured fault that none of the other methods stands for."""


def base_model(model: str) -> str:
    """The name without the date of a snapshot."""
    return re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model)


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def text_tokens(text: str) -> int:
    return max(1, len(re.findall(r"\w+|[^\w\s]", text)) * 4 // 3)


def retry_after_header(hint: str, seconds: float) -> dict[str, str]:
    return {"retry-after": f"{seconds:.0f}"} if hint == "header" else {}
