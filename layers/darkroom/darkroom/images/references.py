"""What an image reference names, and whether this stack may read it.

Nothing is looked up here: a reference is resolved and checked by its text, and `is_public` checks
the addresses that the fetcher finds for its host.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from posixpath import normpath
from urllib.parse import quote, urljoin, urlsplit

from darkroom.errors import ConfigurationError, Reason, RowRejected
from darkroom.formatting import quoted

_DEFAULT_PORTS = {"https": 443, "http": 80}
_MAX_HOST_CHARACTERS = 253
_MAX_KEY_BYTES = 1_024
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")
_FORBIDDEN_IN_KEY = re.compile(r"[\x00-\x1f\ud800-\udfff]")
_LABEL = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(\.{_LABEL})*")
_NUMERIC_LABEL = re.compile(r"(0x[0-9a-f]*|\d+)", re.ASCII)
_HOST_ENTRY = re.compile(r"(\*?\.)?([a-z0-9_][a-z0-9_.-]*|\[[0-9a-f:.]+\])(?::(\d{1,5}))?")

# All global unicast IPv6 addresses of today are in here (IANA); all others are refused.
_GLOBAL_V6 = IPv6Network("2000::/3")
# Routed somewhere special although the registries call parts of them global.
_SPECIAL = (
    IPv4Network("192.0.0.0/24"),  # IETF protocol assignments (RFC 6890)
    IPv4Network("192.88.99.0/24"),  # the anycast relays of 6to4 (RFC 7526)
    IPv6Network("2001::/23"),  # Teredo, ORCHID and other protocol assignments
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("2002::/16"),  # 6to4, whose inner IPv4 address can be any
    IPv6Network("3fff::/20"),  # documentation
    IPv6Network("2620:4f:8000::/48"),  # the AS112 sinks
)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are the IPv4 destination


def is_public(address: str) -> bool:
    """True only for an address on the public internet; False for text that is not an address.

    For IPv4 addresses inside IPv6 ones (mapped, NAT64), the IPv4 address that a packet reaches
    decides.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        if parsed.scope_id is not None:
            return False
        if parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        elif parsed in _NAT64:
            parsed = IPv4Address(int(parsed) & 0xFFFFFFFF)
        elif parsed not in _GLOBAL_V6:
            return False
    special = parsed.is_multicast or any(parsed in network for network in _SPECIAL)
    return parsed.is_global and not special


@dataclass(frozen=True, slots=True)
class HostList:
    """Hosts: `example.com` itself, `*.example.com` for its subdomains, each also with a port."""

    entries: tuple[tuple[bool, str, int | None], ...] = ()

    @classmethod
    def parse(cls, text: str, name: str = "AllowedImageHosts") -> "HostList":
        """Raises ConfigurationError that names the entry."""
        entries = []
        for entry in filter(None, (part.strip().lower() for part in text.split(","))):
            match = _HOST_ENTRY.fullmatch(entry)
            if match is None:
                raise ConfigurationError(
                    f"{name}: {quoted(entry)} is not a host: write example.com or *.example.com"
                )
            port = int(match[3]) if match[3] else None
            entries.append((bool(match[1]), match[2].strip("[]").rstrip("."), port))
        return cls(tuple(entries))

    def __bool__(self) -> bool:
        return bool(self.entries)

    def matches(self, host: str, port: int) -> bool:
        return any(
            (host.endswith(f".{name}") if below else host == name) and only_port in (None, port)
            for below, name, only_port in self.entries
        )


@dataclass(frozen=True, slots=True)
class WebImage:
    """An https (or trusted http) URL that passed the rules. `host` is ASCII, in lower case."""

    scheme: str
    host: str
    port: int
    target: str  # path and query, percent-encoded

    @property
    def authority(self) -> str:
        """Host and port as in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """Base for redirects. Not to be shown: the query may contain a signature."""
        return f"{self.scheme}://{self.authority}{self.target}"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An object in S3."""

    bucket: str
    key: str


@dataclass(frozen=True, slots=True)
class ImageRules:
    """What rows may name. Trusted hosts may also use http, any port and private addresses."""

    buckets: tuple[str, ...]
    allowed: HostList = HostList()  # empty: any public host
    trusted: HostList = HostList()
    confined_buckets: tuple[str, ...] = ()  # only objects under the folder of the row's CSV

    def resolve(self, reference: str, base: str) -> WebImage | StoredImage:
        """`base` is `s3://bucket/folder/`. Raises RowRejected (bad_image)."""
        image = self._resolve(reference, base)
        if isinstance(image, StoredImage) and image.bucket in self.confined_buckets:
            folder = base.removeprefix("s3://").partition("/")[2]
            if not image.key.startswith(folder):
                raise rejected(
                    reference,
                    "is outside the folder of the CSV, to which this stack confines its rows "
                    "(ConfineRowsToPrefix)",
                )
        return image

    def _resolve(self, reference: str, base: str) -> WebImage | StoredImage:
        scheme = reference.partition("://")[0].lower() if "://" in reference else ""
        if scheme in _DEFAULT_PORTS:
            return self.check_url(reference)
        if scheme == "s3":
            bucket, _, key = reference[len("s3://") :].partition("/")
            if any(part in (".", "..") for part in key.split("/")):
                raise rejected(reference, "has . or .. in its path: write the object's own key")
            return self._stored(reference, bucket, key)
        if scheme:
            raise rejected(reference, "is neither an https:// nor an s3:// URL")
        return self._relative(reference, base)

    def redirect(self, origin: WebImage, location: str) -> WebImage:
        """The target of a redirect by `origin`, checked like any URL. Raises RowRejected."""
        try:
            url = urljoin(origin.url, location)
        except ValueError as error:
            raise rejected(location.partition("?")[0], "is not a valid URL") from error
        return self.check_url(url)

    def check_url(self, url: str) -> WebImage:
        """Raises RowRejected (bad_image) with the problem."""
        escaped = url.strip().replace(" ", "%20")
        if _FORBIDDEN.search(escaped):
            raise rejected(url, "contains a backslash or a control character")
        try:
            parts = urlsplit(escaped)
            port = parts.port
        except ValueError as error:
            raise rejected(url, "is not a valid URL") from error
        scheme = parts.scheme.lower()
        if scheme not in _DEFAULT_PORTS:
            raise rejected(url, "is not an https:// URL")
        if "@" in parts.netloc:
            raise rejected(url, "contains a user name or password: remove them")
        host = _ascii_host(url, parts.hostname or "")
        port = _DEFAULT_PORTS[scheme] if port is None else port
        self._check_host(url, scheme, host, port)
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]") if parts.query else ""
        return WebImage(scheme, host, port, path + query)

    def _check_host(self, url: str, scheme: str, host: str, port: int) -> None:
        if self.trusted.matches(host, port):
            return
        if scheme != "https":
            raise rejected(url, "is not encrypted: use https://")
        if self.allowed and not self.allowed.matches(host, port):
            raise rejected(url, f"is on the host {host}, which AllowedImageHosts does not list")
        if port != _DEFAULT_PORTS["https"]:
            raise rejected(url, f"uses port {port}: only the port of https, 443, is allowed")
        if "." not in host and ":" not in host:
            raise rejected(url, f"is on {host}, which is not a public host name")

    def _stored(self, reference: str, bucket: str, key: str) -> StoredImage:
        if bucket not in self.buckets:
            raise rejected(
                reference,
                "is in another bucket: copy the image into the bucket of the CSV, or name it "
                "by an https:// URL",
            )
        if not key or key.endswith("/"):
            raise rejected(reference, "names a folder, not an image")
        too_long = len(key.encode(errors="surrogatepass")) > _MAX_KEY_BYTES
        if too_long or _FORBIDDEN_IN_KEY.search(key):
            raise rejected(reference, "cannot be the key of an object")
        return StoredImage(bucket, key)

    def _relative(self, reference: str, base: str) -> StoredImage:
        bucket, _, folder = base.removeprefix("s3://").partition("/")
        if not reference.strip():
            raise rejected(reference, "is empty")
        if reference.startswith("/"):
            raise rejected(reference, "begins with a slash: paths are relative to the CSV's folder")
        if "\\" in reference:
            raise rejected(reference, "contains a backslash: write paths with /")
        path = normpath(folder + reference)
        if path == ".." or path.startswith("../"):
            raise rejected(reference, "leads outside the CSV's bucket")
        if reference.rpartition("/")[2] in ("", ".", "..") or path == ".":
            raise rejected(reference, "names a folder, not an image")
        return self._stored(reference, bucket, path)


def rejected(reference: str, problem: str) -> RowRejected:
    """`problem`: the end of a sentence that starts with the image."""
    return RowRejected(Reason.BAD_IMAGE, f"image {quoted(reference)} {problem}")


def _ascii_host(url: str, host: str) -> str:
    """The host in lower case, of a form that is looked up as it is written."""
    try:
        if ":" in host:
            host = IPv6Address(host).compressed
        elif not host.isascii():
            import idna  # noqa: PLC0415 - its tables are large, and few hosts need them

            host = idna.encode(host, uts46=True).decode()
    except ValueError as error:  # IDNAError is one too
        raise rejected(url, "does not have a valid host name") from error
    if ":" in host and "%" not in host:  # a scope (%eth0) is valid on one machine only
        return host
    host = host.lower().removesuffix(".")
    if len(host) > _MAX_HOST_CHARACTERS or _HOST.fullmatch(host) is None:
        raise rejected(url, "does not have a valid host name")
    if _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
        try:
            IPv4Address(host)
        except ValueError as error:
            raise rejected(url, "has an address in an unusual notation: use a host name") from error
    return host
