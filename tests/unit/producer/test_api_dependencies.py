"""What FastAPI calls before a handler costs no thread."""

from collections.abc import Iterator
from inspect import iscoroutinefunction

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from turnmill.producer.api.resources import channels, completions, models, operation, turns


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
