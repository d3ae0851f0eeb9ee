"""Engines for the contract suite: each loaded once, in full precision, with the default model."""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines.base import Engine
from turnmill.workers.engines.registry import ENGINES, REQUIREMENTS, create_engine

#: Kept from run to run: fetching and converting take half a minute.
MODELS_DIR = Path("~/.cache/turnmill/models").expanduser()

#: Small, so that a prompt that overflows it costs little.
CONTEXT_WINDOW = 512


#: Engines whose libraries do not fit beside the others', and where they are tested.
OWN_ENVIRONMENT = {"vllm": "make test-vllm"}


def require_libraries(name: str) -> None:
    """A missing library skips at home and fails in CI, but for engines that are tested apart."""
    module, extra = REQUIREMENTS.get(name, ("turnmill", ""))
    if find_spec(module) is None:
        if name in OWN_ENVIRONMENT:
            pytest.skip(f"the engine '{name}' is tested by `{OWN_ENVIRONMENT[name]}`")
        reason = f"pip install 'turnmill[{extra}]' to test the engine '{name}'"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session", params=list(ENGINES))
def make_engine(request: pytest.FixtureRequest) -> Callable[[], Engine]:
    require_libraries(request.param)
    # In 16 bits, rounding makes a reply depend on what it is batched with.
    settings = EngineSettings(
        name=request.param,
        models_dir=MODELS_DIR,
        dtype="float32",
        device="cpu",
        context_window=CONTEXT_WINDOW,
        max_batch_size=8,
    )
    return lambda: create_engine(settings)


@pytest.fixture(scope="session")
def engine(make_engine: Callable[[], Engine]) -> Iterator[Engine]:
    engine = make_engine()
    engine.start()
    yield engine
    engine.close()
