"""Whether a host name or an address can only mean this machine."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address


def is_loopback(host: str) -> bool:
    """True for 127.0.0.0/8, ::1, either as an IPv6 address that maps them, localhost and names below it.

    Nothing is looked up: another name, and a number in another notation, is not loopback whatever it resolves to.
    """
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address is not None and address.is_loopback


def is_every_interface(host: str) -> bool:
    """True for 0.0.0.0, :: and the empty host: addresses to listen on, never to be asked by."""
    address = _address(host)
    return not host or (address is not None and address.is_unspecified)


def asked_host(host: str) -> str:
    """The host by which a server that listens on ``host`` is asked from its own machine."""
    if not is_every_interface(host):
        return host
    return "::1" if ":" in host else "127.0.0.1"


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None
