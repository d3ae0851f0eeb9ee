"""Which addresses a reply may link to."""

import html
import re
from collections.abc import Collection
from dataclasses import dataclass

from turnmill.schemas.safety.hosts import plain_host

#: Scheme, host and the rest. No name of a user: it reads like a host.
_WEB = re.compile(r"(?i:(https?)://)([^/?#@]+)((?:[/?#].*)?)", re.DOTALL)

#: Browsers take a backslash for a slash, and leave out control characters and spaces.
_MISREAD = re.compile(r"[\\\s\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Targets:
    """Addresses that replies may link to.

    An address is judged as each of its readers may read it: as it is written, and with references
    to characters resolved (`&colon;`), as Markdown and HTML do.
    """

    #: As `plain_host` writes them; `*.` stands for all hosts below one.
    hosts: frozenset[str] = frozenset()
    #: Addresses that may be linked to as they are, and no image loaded from.
    pinned: frozenset[str] = frozenset()

    @classmethod
    def of(cls, hosts: Collection[str], pinned: Collection[str] = ()) -> "Targets":
        """With the pinned addresses in the one form in which they are compared."""
        forms = {form for address in pinned for form in (address, html.unescape(address))}
        return cls(frozenset(hosts), frozenset(filter(None, map(_comparable, forms))))

    def allow(self, address: str, *, is_image: bool = False) -> bool:
        """Whether a reply may link to the address, or show an image from it."""
        return all(self._allow(form, is_image) for form in {address, html.unescape(address)})

    def _allow(self, address: str, is_image: bool) -> bool:
        found = _WEB.fullmatch(address)
        host = found and plain_host(found[2])
        if not host or _MISREAD.search(address):
            return False
        if host in self.hosts or any(f"*.{above}" in self.hosts for above in _above(host)):
            return True
        return not is_image and _comparable(address) in self.pinned


def _above(host: str) -> list[str]:
    """The hosts that it is below."""
    labels = host.split(".")
    return [".".join(labels[at:]) for at in range(1, len(labels))]


def _comparable(address: str) -> str | None:
    """The address without its fragment, and with its host in one spelling."""
    found = _WEB.fullmatch(address.partition("#")[0])
    host = found and plain_host(found[2])
    return f"{found[1].lower()}://{host}{found[3] or '/'}" if found and host else None
