"""Phrases of well-known prompt injections.

An attack that works reads like any other text, and a document about attacks reads like one. So this
check only flags: what an obeying model can do is limited elsewhere.
"""

import re
from collections.abc import Sequence

from turnmill.schemas.safety.findings import Finding
from turnmill.schemas.safety.policy import Safety
from turnmill.workers.checks.base import Check

_PHRASES = re.compile(
    r"(?:ignore|disregard|forget|override)\b.{0,30}"
    r"\b(?:previous|prior|above|earlier|all|any)\b.{0,30}\b(?:instruction|prompt|rule|direction|message|context)s?"
    r"|(?:reveal|print|repeat|show|output)\b.{0,30}"
    r"\b(?:system prompt|initial prompt|instructions above)"
    r"|you are now\b.{0,40}\b(?:dan|unrestricted|jailbroken|developer mode)"
    r"|(?:忽略|无视|忘记|忘掉).{0,10}?(?:之前|以上|上述|所有|先前).{0,10}?(?:指令|指示|提示|规则|要求)"
    r"|(?:输出|显示|告诉我|重复).{0,10}(?:系统提示|系统指令|初始提示)",
    re.IGNORECASE,
)


class InjectionCheck(Check):
    """Finds usual phrases, English and Chinese."""

    def __init__(self, safety: Safety) -> None:
        """There is nothing to set."""

    def examine(self, text: str) -> Sequence[Finding]:
        return [Finding(*found.span(), "injection") for found in _PHRASES.finditer(text)]
