"""What the simulated image APIs share: a parsed request, and the interface of an API format."""

import base64
import binascii
import io
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from PIL import Image

from darkroom_local.providers.config import Fault, FaultKind
from darkroom_local.providers.http import Request, Response

MIB = 1024 * 1024
BROKEN_IMAGE = b"\x89PNG no"
_URL_SAFE = str.maketrans("-_", "+/")
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


class ImageApi(ABC):
    """One provider's API format."""

    label: str
    invalid_key_status: int

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
    def fault_response(self, fault: Fault, request: ImageRequest) -> Response:
        """The response to a fault that `failure` does not handle."""

    def failure(self, fault: Fault, request: ImageRequest) -> Response:
        """The response to a configured fault that has a form of its own in this API."""
        match fault.kind:
            case FaultKind.RATE_LIMITED:
                return self.rate_limited(fault.hint, fault.retry_after, fault.per)
            case FaultKind.KEY_REJECTED:
                return self.invalid_key(fault.status or self.invalid_key_status)
            case FaultKind.MODEL_RETIRED:
                return self.model_not_found(request.model)
        return self.fault_response(fault, request)


def base_model(model: str) -> str:
    """The name without the date of a snapshot."""
    return re.sub(r"-\d{4}-\d{2}-\d{2}$", "", model)


def model_rules[T](rules: tuple[tuple[str, T], ...], model: str) -> T:
    """The rules of the first pattern that matches the model's name. Raises KeyError."""
    for pattern, found in rules:
        if re.fullmatch(pattern, base_model(model)):
            return found
    raise KeyError(model)


def decode_base64(text: str) -> bytes:
    """Standard or URL-safe alphabet. Raises ValueError."""
    try:
        return base64.b64decode(text.translate(_URL_SAFE) + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def encode_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def decode_image(image: InputImage) -> Image.Image:
    """Decode in full, and only as the declared type. Raises ValueError."""
    image_format = image.mime.removeprefix("image/").upper()
    try:
        decoded = Image.open(io.BytesIO(image.data), formats=[image_format])
        decoded.load()
    except (OSError, ValueError, SyntaxError, KeyError) as error:
        raise ValueError(f"not a {image_format}") from error
    return decoded


def text_tokens(text: str) -> int:
    return max(1, len(re.findall(r"\w+|[^\w\s]", text)) * 4 // 3)


def with_retry_after(response: Response, hint: str, retry_after: float) -> Response:
    """Adds the header when `hint` is "header"."""
    if hint == "header":
        response.headers = {"retry-after": f"{retry_after:.0f}"}
    return response
