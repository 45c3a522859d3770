"""The addresses that a row's URL may lead to, compared with the registries' lists."""

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from darkroom.images.references import is_public

# IANA IPv4 and IPv6 Special-Purpose Address Registries, and multicast.
SPECIAL = """\
0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24
192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24
224.0.0.0/4 240.0.0.0/4 255.255.255.255/32
::/128 ::1/128 ::ffff:0:0/104 ::ffff:127.0.0.0/104 ::ffff:169.254.0.0/112 ::ffff:10.0.0.0/104
::/96 64:ff9b::7f00:0/104 64:ff9b::a9fe:0/112 64:ff9b::a00:0/104 64:ff9b:1::/48 100::/64
2001::/23 2001::/32 2001:2::/48 2001:10::/28 2001:20::/28 2001:db8::/32 2002::/16 2620:4f:8000::/48
3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8
""".split()  # noqa: SIM905 - in the order of the registries


def ends(network: str) -> tuple[str, str]:
    net = ip_network(network)
    return str(net[0]), str(net[-1])


@pytest.mark.parametrize("network", SPECIAL)
def test_no_address_of_a_special_network_is_public(network: str) -> None:
    first, last = ends(network)
    middle = str(ip_network(network)[ip_network(network).num_addresses // 2])
    assert not any(is_public(address) for address in (first, middle, last))


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",  # EC2 and other clouds' metadata
        "169.254.170.2",  # ECS credentials
        "169.254.169.253",  # the VPC's resolver
        "fd00:ec2::254",  # EC2 metadata over IPv6
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "fe80::1%eth0",
    ],
)
def test_metadata_services_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "223.255.255.255",
        "2606:4700::1111",
        "2a00:1450:4001:800::200e",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
    ],
)
def test_ordinary_addresses_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("text", ["", "example.com", "127.1", "0x7f.1", "1.2.3.4 ", "[::1]", "::g"])
def test_text_that_is_not_an_address_is_not_public(text: str) -> None:
    assert not is_public(text)


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_inside_ipv6_is_treated_as_itself(address: IPv4Address) -> None:
    mapped = IPv6Address(0xFFFF_0000_0000 + int(address))
    translated = IPv6Address(int(IPv6Address("64:ff9b::")) + int(address))
    assert is_public(str(mapped)) == is_public(str(translated)) == is_public(str(address))


WRAPPERS = (
    ip_network("64:ff9b::/96"),
    ip_network("::ffff:0:0/96"),
)  # the inner address decides


@given(st.ip_addresses())
def test_no_address_special_to_python_is_public(address: IPv4Address | IPv6Address) -> None:
    special = address.is_private or address.is_multicast or address.is_reserved
    if special and not any(address in wrapper for wrapper in WRAPPERS):
        assert not is_public(str(address))
