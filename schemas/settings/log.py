"""How much is logged, and in which form."""

from typing import Literal

from turnmill.schemas.settings.section import Section


class LogSettings(Section):
    #: What is logged.
    level: Literal["debug", "info", "warning", "error"] = "info"
    #: `json` for machines, `console` for people; `auto` asks whether a terminal is attached.
    format: Literal["auto", "json", "console"] = "auto"
