"""The checks there are. A new one is one file and one line here."""

from functools import lru_cache
from importlib import import_module

from turnmill.schemas.safety.policy import Safety
from turnmill.workers.checks.base import Check

CHECKS = {
    "personal": "turnmill.workers.checks.personal:PersonalCheck",
    "secrets": "turnmill.workers.checks.secrets:SecretsCheck",
    "words": "turnmill.workers.checks.words:WordsCheck",
    "injection": "turnmill.workers.checks.injection:InjectionCheck",
}


@lru_cache(256)
def create_check(name: str, safety: Safety) -> Check:
    """Make the check of this name for a bot with this policy."""
    module, _, kind = CHECKS[name].partition(":")
    check: Check = getattr(import_module(module), kind)(safety)
    return check
