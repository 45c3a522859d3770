"""Which addresses belong to the public internet."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

# Routed somewhere special although the registries call parts of them global:
# IETF protocol assignments (RFC 6890) and the anycast relays of 6to4 (RFC 7526).
_SPECIAL_V4 = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"))
# All of today's global unicast IPv6 lies in here (IANA); everything else is refused unread.
_GLOBAL_V6 = IPv6Network("2000::/3")
# Teredo, ORCHID and other protocol assignments; 6to4, whose inner IPv4 address is anybody's;
# documentation; the AS112 sinks.
_SPECIAL_V6 = (
    IPv6Network("2001::/23"),
    IPv6Network("2001:db8::/32"),
    IPv6Network("2002::/16"),
    IPv6Network("3fff::/20"),
    IPv6Network("2620:4f:8000::/48"),
)
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last four bytes are the IPv4 destination


def is_public(address: str) -> bool:
    """True only for an address on the public internet; False for what is no address at all.

    IPv4 addresses inside IPv6 ones (mapped, NAT64) are judged by the IPv4 address a packet reaches.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return _is_public_v4(parsed)
    if parsed.scope_id is not None:
        return False
    if parsed.ipv4_mapped is not None:
        return _is_public_v4(parsed.ipv4_mapped)
    if parsed in _NAT64:
        return _is_public_v4(IPv4Address(int(parsed) & 0xFFFFFFFF))
    return _is_public_v6(parsed)


def _is_public_v4(address: IPv4Address) -> bool:
    special = address.is_multicast or any(address in network for network in _SPECIAL_V4)
    return address.is_global and not special


def _is_public_v6(address: IPv6Address) -> bool:
    special = any(address in network for network in _SPECIAL_V6)
    return address.is_global and address in _GLOBAL_V6 and not special
