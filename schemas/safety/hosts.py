"""Hosts of addresses, in the one spelling in which two of them can be compared.

Browsers map a host before they look it up (https://www.unicode.org/reports/tr46/): compatibility
forms become plain ones, and other stops become dots. A letter that only looks like another one
stays what it is, so a look-alike never equals what it looks like.
"""

import re
import unicodedata

_STOPS = str.maketrans({"\u3002": ".", "\uff0e": ".", "\uff61": "."})
_HOST = re.compile(r"[\w-]+(?:\.[\w-]+)*(?::\d{1,5})?")
_DEFAULT_PORT = re.compile(r":(?:80|443)$")


def plain_host(host: str) -> str | None:
    """Write a host, perhaps with a port, in ASCII and lower case; None if it is not one.

    Default ports and the dot at the end are left out.
    """
    mapped = unicodedata.normalize("NFKC", host.translate(_STOPS)).lower().removesuffix(".")
    if not _HOST.fullmatch(mapped):
        return None
    name, _, port = _DEFAULT_PORT.sub("", mapped).partition(":")
    labels = [_plain_label(label) for label in name.split(".")]
    return ".".join(labels) + (f":{port}" if port else "")


def _plain_label(label: str) -> str:
    """https://www.rfc-editor.org/rfc/rfc3492"""
    return label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii")
