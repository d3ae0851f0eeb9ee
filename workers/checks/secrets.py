"""Secrets: keys of well-known services, private keys, passwords in addresses.

The forms are those that the services publish:
https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/about-authentication-to-github,
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
"""

import re
from collections.abc import Sequence

from turnmill.schemas.safety.findings import Finding, apart
from turnmill.schemas.safety.policy import Safety
from turnmill.workers.checks.base import Check

_BEGIN = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----")
_END = re.compile(r"-----END [A-Z ]*PRIVATE KEY( BLOCK)?-----")

_KEY = re.compile(rf"{_BEGIN.pattern}.*?(?:{_END.pattern}|\Z)", re.DOTALL)

_FORMS = (
    ("private_key", _KEY),
    # Part of one, where its beginning has been cut off.
    ("private_key", re.compile(r"(?<![\w+/=])[A-Za-z0-9+/]{60,}={0,2}(?![\w+/=])")),
    (
        "api_key",
        re.compile(
            r"(?<![A-Za-z0-9])(?:sk-(?:proj-|ant-|live-)?[A-Za-z0-9_-]{20,}|[sr]k_live_[A-Za-z0-9]{16,}"
            r"|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,}|glpat-[\w-]{20,}|xox[abposr]-[\w-]{10,}"
            r"|xapp-[\w-]{20,}|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{35}|hf_[A-Za-z0-9]{30,}"
            r"|npm_[A-Za-z0-9]{36}|pypi-[\w-]{50,}|SG\.[\w-]{20,}\.[\w-]{20,}|LTAI[A-Za-z0-9]{12,})"
            r"(?![A-Za-z0-9])"
        ),
    ),
    ("token", re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}")),
    ("password", re.compile(r"(?<=://)[^\s/:@]{1,100}:[^\s/:@]{1,200}(?=@[\w.-])")),
)


class SecretsCheck(Check):
    """Finds what its form tells to be secret."""

    def __init__(self, safety: Safety) -> None:
        """There is nothing to set."""

    def examine(self, text: str) -> Sequence[Finding]:
        found = (
            Finding(*each.span(), category)
            for category, pattern in _FORMS
            for each in pattern.finditer(text)
        )
        return apart(found)

    def open_at(self, text: str, end: int) -> int:
        found = _KEY.finditer(text)
        return next((each.start() for each in found if each.start() < end < _after(each)), end)


def _after(key: re.Match[str]) -> float:
    """Where the key ends; it goes on while its last line has not come."""
    return key.end() if _END.search(key[0]) else float("inf")
