"""What all sections of the settings have in common."""

from collections.abc import Callable, Iterator
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SecretStr,
)

from turnmill.schemas.observability.masking import masked_urls, masked_within
from turnmill.schemas.urls import check_origin


class SecretUrl(SecretStr):
    """A URL, or several joined with `;`, shown without its login; `get_secret_value` has all."""

    def _display(self) -> str:
        return masked_urls(self.get_secret_value())


def checked_url(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda url: SecretUrl(check(url.get_secret_value())))


class Section(BaseModel):
    """Settings that belong together. Neither their `repr` nor an error shows a password."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, object]]:
        """Mask URLs in settings that are no URLs, too."""
        for name, value in super().__repr_args__():
            yield name, masked_within(value)


Origin = Annotated[str, AfterValidator(check_origin)]
