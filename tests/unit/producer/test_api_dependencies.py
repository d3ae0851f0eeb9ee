"""What FastAPI calls before a handler costs no thread, and a body is read from known callers."""

import asyncio
from collections.abc import Callable, Iterator
from inspect import iscoroutinefunction
from types import SimpleNamespace
from typing import Annotated
from uuid import UUID

import pytest
from fastapi import APIRouter, Depends, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.types import Message

from turnmill.producer.api.auth import TenantOf
from turnmill.producer.api.bodies import BodyRoute
from turnmill.producer.api.resources import channels, completions, models, operation, turns
from turnmill.schemas.errors import NotAuthenticated
from turnmill.schemas.settings import load_settings


def dependencies(dependant: Dependant) -> Iterator[object]:
    for each in dependant.dependencies:
        yield each.call
        yield from dependencies(each)


def test_no_dependency_is_a_plain_function_which_fastapi_runs_in_a_thread() -> None:
    routers = (channels, completions, models, operation, turns)
    routes = [each for part in routers for each in part.router.routes]
    calls = [
        call
        for route in routes
        if isinstance(route, APIRoute)
        for call in dependencies(route.dependant)
    ]
    assert calls
    assert [call for call in calls if not is_coroutine(call)] == []


def is_coroutine(call: object) -> bool:
    """Also of an object that is called."""
    return iscoroutinefunction(call) or iscoroutinefunction(type(call).__call__)


async def named(tenant_id: TenantOf) -> str:
    return str(tenant_id)


async def anybody() -> str:
    return "anybody"


def test_a_handler_with_a_body_and_no_tenant_is_refused_at_start() -> None:
    async def take(body: dict[str, str], caller: Annotated[str, Depends(anybody)]) -> None: ...

    with pytest.raises(TypeError, match=r"take takes a JSON body.*TenantOf"):
        APIRouter(route_class=BodyRoute).add_api_route("/", take, methods=["POST"])


async def take_itself(body: dict[str, str], tenant_id: TenantOf) -> UUID:
    return tenant_id


async def take_through_another(body: dict[str, str], caller: Annotated[str, Depends(named)]) -> str:
    return caller


@pytest.mark.parametrize("handler", [take_itself, take_through_another])
def test_a_stranger_is_refused_before_the_body_is_read(handler: Callable[..., object]) -> None:
    async def receive() -> Message:
        raise AssertionError("the body is read")

    services = SimpleNamespace(settings=load_settings())
    app = SimpleNamespace(state=SimpleNamespace(services=services))
    handle = BodyRoute("/", handler, methods=["POST"]).get_route_handler()
    request = Request({"type": "http", "headers": [], "app": app}, receive)
    with pytest.raises(NotAuthenticated, match="didn't provide an API key"):
        asyncio.run(handle(request))
