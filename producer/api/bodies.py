"""JSON bodies that handlers take as a parameter: read once the caller is known, and large ones
parsed beside the event loop.

Left to itself, FastAPI reads a body of any size and parses it on the event loop, and looks at the
API key afterwards.
"""

import re
from collections.abc import Callable, Coroutine
from functools import partial

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json

from turnmill.producer.api.auth import require_tenants, tenants_of
from turnmill.producer.api.headers import read_body
from turnmill.producer.api.services import Services
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.json_size import has_more_values
from turnmill.schemas.openai.parsing import BOM

#: FastAPI's field of a body: validates an object, and returns the value and the mistakes.
Validate = Callable[..., tuple[object, list[dict[str, object]]]]

_JSON = re.compile(r"application/(.+\+)?json")


class BodyRoute(APIRoute):
    """A route whose handler may take a JSON body, which needs a tenant beside it.

    https://fastapi.tiangolo.com/how-to/custom-request-and-route/
    """

    #: JSON values of a body, keys included. A bot's schema of replies has some hundred.
    max_values = 10_000

    def get_route_handler(self) -> Callable[[Request], Coroutine[object, object, Response]]:
        """Let FastAPI's handler find the body as it is once it is validated.

        Raises `TypeError` for a handler that takes a body and no tenant.
        """
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        tenants = tenants_of(self.dependant)
        if not tenants:
            raise TypeError(
                f"{self.name} takes a JSON body, which would be read from anybody: give it the "
                "caller's tenant too, as TenantOf does."
            )
        parse = partial(_parse, self.body_field.validate, self.max_values)

        async def read_and_handle(request: Request) -> Response:
            services: Services = request.app.state.services
            await require_tenants(request, tenants)
            body = await read_body(request, services.settings.api.max_body_bytes)
            if body:
                _refuse_other_type(request)
            value = await services.parse(parse, body) if body else None
            return await handle(_ReadRequest(request, body, value))

        return read_and_handle


class _ReadRequest(Request):
    """A request whose body is validated. FastAPI validates again, and takes a model as it is."""

    def __init__(self, request: Request, body: bytes, value: object) -> None:
        super().__init__(request.scope, request.receive)
        self._bytes = body
        self._value = value

    async def body(self) -> bytes:
        return self._bytes

    async def json(self) -> object:
        return self._value


def _refuse_other_type(request: Request) -> None:
    """Browsers send other types than JSON to other sites without asking first (CORS)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not _JSON.fullmatch(kind):
        raise InvalidInput("The body must be JSON: send 'Content-Type: application/json'.")


def _parse(validate: Validate, max_values: int, body: bytes) -> object:
    """Read a body, which may begin with a UTF-8 byte order mark.

    Raises `InvalidInput` and `RequestValidationError`.
    """
    if has_more_values(body, max_values):
        raise InvalidInput(f"The body has more than {max_values} JSON values.")
    try:
        parsed = from_json(body.removeprefix(BOM))
    except ValueError as error:
        raise InvalidInput(f"The body is not valid JSON: {error}.") from None
    value, mistakes = validate(parsed, loc=("body",))
    if mistakes:
        raise RequestValidationError(mistakes)
    return value
