"""The address that a request comes from, if a trusted proxy forwarded it.

Uvicorn's ProxyHeadersMiddleware does about the same. It also accepts as an address whatever text a
client has sent through a trusted proxy, and trusts this machine unless it is configured.
"""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from starlette.types import Scope

Address = IPv4Address | IPv6Address
# Proxies in a row. Entries further away are ignored: the client may have invented them.
MAX_HOPS = 16
MAX_ENTRY_CHARACTERS = 60  # an IPv6 address with brackets and port has 47
FORWARDED_FOR, FORWARDED_PROTO = b"x-forwarded-for", b"x-forwarded-proto"
SCHEMES = (b"http", b"https")


class Proxies:
    """Addresses whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed; those of all others
    are ignored."""

    def __init__(self, trusted: Sequence[IPv4Network | IPv6Network] = ()) -> None:
        self._trusted = trusted

    def apply(self, scope: Scope) -> None:
        """Replace `client` and `scheme` of a request by those that trusted proxies report."""
        peer = scope.get("client")
        if not self._trusted or peer is None or not self._trusts(_address(peer[0])):
            return
        said = [value for name, value in scope["headers"] if name == FORWARDED_FOR]
        if found := self._client(b",".join(said)):
            scope["client"] = (str(found), 0)
        schemes = [value for name, value in scope["headers"] if name == FORWARDED_PROTO]
        if schemes and schemes[-1].strip().lower() in SCHEMES:
            scope["scheme"] = schemes[-1].strip().lower().decode()

    def _client(self, forwarded: bytes) -> Address | None:
        """The last address that no trusted proxy has. Each proxy appends the one that it was
        called from, so that everything before that address may be invented."""
        found = None
        for entry in _last_entries(forwarded):
            address = _address(entry)
            if address is None:  # appended by a trusted proxy that does not report the address
                return found
            found = address
            if not self._trusts(address):
                return found
        return found

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._trusted)


NONE_TRUSTED = Proxies()


def _last_entries(forwarded: bytes) -> Iterator[str]:
    """The entries of `X-Forwarded-For`, the last first."""
    entries = forwarded.rsplit(b",", MAX_HOPS)[-MAX_HOPS:]
    for entry in reversed(entries):
        if text := entry.strip().decode("latin-1"):
            yield text


def _address(text: str) -> Address | None:
    """An address with or without a port; None for anything else. An IPv4 address that is written
    as IPv6 becomes IPv4."""
    if len(text) > MAX_ENTRY_CHARACTERS or "%" in text:  # a zone may be any text
        return None
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or not _is_port(port):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            return None
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _is_port(text: str) -> bool:
    """Whether a text is empty, or a port after a colon."""
    return not text or (text[0] == ":" and text[1:].isdecimal() and text.isascii())
