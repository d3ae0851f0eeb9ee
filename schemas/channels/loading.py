"""Load what belongs to a kind of channel, only where one is configured."""

from importlib import import_module
from typing import Any

from turnmill.schemas.channels.sections.base import ChannelSection
from turnmill.schemas.errors import SettingsError


def load_class(known: dict[str, str], name: str, section: ChannelSection) -> Any:
    """Import the class of a channel's kind; `known` maps kinds to "module:Class".

    Raises:
        SettingsError: its library is not installed.
    """
    module, _, attribute = known[section.kind].partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("turnmill"):
            raise
        raise SettingsError(
            f"Channel {name!r} needs {error.name}: pip install 'turnmill[{section.kind}]'"
        ) from None
