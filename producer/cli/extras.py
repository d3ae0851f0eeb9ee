"""Commands whose libraries come with an extra of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

from turnmill.schemas.errors import SettingsError


@contextmanager
def needing(extras: str) -> Iterator[None]:
    """Say which extras to install, where the imports of a block find a library missing.

    Raises:
        SettingsError: naming the library and pip's command.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed: pip install 'turnmill[{extras}]'"
        ) from None
