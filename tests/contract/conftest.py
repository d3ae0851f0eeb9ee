"""Engines for the contract suite: each loaded once, in full precision, with the default model."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from tests.requirements import require_installed
from tests.selection import TENSORFLOW
from turnmill.infra.bench.peers.llama_server import serving_llama
from turnmill.schemas.settings import DEFAULT_MODEL, EngineSettings, SecretUrl
from turnmill.workers.engines.base import Engine
from turnmill.workers.engines.models import prepare_model
from turnmill.workers.engines.registry import ENGINES, REQUIREMENTS, create_engine

from .odd_server import OddServer, serving
from .vllm_server import serving_vllm

#: Kept from run to run: fetching and converting take half a minute.
MODELS_DIR = Path("~/.cache/turnmill/models").expanduser()

#: Small, so that a prompt that overflows it costs little.
CONTEXT_WINDOW = 512

PEER = Path(__file__).with_name("tfserving_peer.py")


class OpenAIServerProcess(Protocol):
    url: str

    def kill(self) -> None: ...


@pytest.fixture(scope="session")
def start_openai_server() -> Callable[[ExitStack], OpenAIServerProcess]:
    """A server that lives as long as the stack: vLLM's where it is installed
    (`make test-vllm`), else llama.cpp's.
    """
    if find_spec("vllm") is not None:
        return lambda stack: stack.enter_context(serving_vllm(MODELS_DIR))
    require_installed("xllamacpp", "dev")
    path = prepare_model(EngineSettings(models_dir=MODELS_DIR), "gguf")
    return lambda stack: stack.enter_context(serving_llama(path, DEFAULT_MODEL, 8, CONTEXT_WINDOW))


@pytest.fixture(scope="session")
def openai_endpoints(
    start_openai_server: Callable[[ExitStack], OpenAIServerProcess],
) -> Iterator[tuple[str, ...]]:
    with ExitStack() as stack:
        yield (start_openai_server(stack).url,)


@pytest.fixture(
    scope="session",
    params=[pytest.param(name, marks=pytest.mark.needs(name)) for name in ENGINES],
)
def make_engine(request: pytest.FixtureRequest) -> Callable[[], Engine]:
    if request.param in REQUIREMENTS:
        require_installed(*REQUIREMENTS[request.param])
    if request.param == "triton":
        return _make_triton(request.getfixturevalue("start_triton"))
    # In 16 bits, rounding makes a reply depend on what it is batched with.
    settings = EngineSettings(
        name=request.param,
        models_dir=MODELS_DIR,
        dtype="float32",
        device="cpu",
        context_window=CONTEXT_WINDOW,
        max_batch_size=8,
        silence_s=300,
    )
    if request.param == "openai_http":
        endpoints = tuple(map(SecretUrl, request.getfixturevalue("openai_endpoints")))
        settings = settings.model_copy(update={"endpoints": endpoints})
    if request.param == "tfserving":
        peer = request.getfixturevalue("smollm2_at_tfserving")
        settings = settings.model_copy(
            update={"endpoints": (SecretUrl(peer.url),), "remote_model": "chat"}
        )
    return lambda: create_engine(settings)


def _make_triton(start_triton: Callable[..., Any]) -> Callable[[], Engine]:
    """A real server, and the default model in it."""
    served = {
        "name": "openvino",
        "models_dir": str(MODELS_DIR),
        "dtype": "float32",
        "device": "cpu",
        "context_window": CONTEXT_WINDOW,
        "max_batch_size": 8,
    }
    server = start_triton({1: served})
    settings = EngineSettings(
        name="triton", endpoints=(server.endpoint,), remote_model="turnmill", max_batch_size=8
    )
    return lambda: create_engine(settings)


@pytest.fixture(scope="session")
def engine(make_engine: Callable[[], Engine]) -> Iterator[Engine]:
    engine = make_engine()
    engine.start()
    yield engine
    engine.close()


class TFServingPeer:
    """The stand-in for TensorFlow Serving, as a process."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [TENSORFLOW, PEER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def load(self) -> None:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)

    def kill(self) -> None:
        with self.process:
            self.process.kill()


@pytest.fixture(scope="session")
def export_to_tfserving() -> Callable[..., None]:
    """`export(checkpoint, folder, version)`: with the command that users run."""

    def export(checkpoint: Path, folder: Path, version: int = 1) -> None:
        module = ["-m", "turnmill.infra.tfserving.export"]
        subprocess.run(
            [TENSORFLOW, *module, checkpoint, folder, "--version", str(version)],
            check=True,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )

    return export


@pytest.fixture(scope="session")
def start_tfserving(eventually: Callable[..., None]) -> Iterator[Callable[..., TFServingPeer]]:
    """`start(*arguments)`: a peer that has loaded its models, unless it `is_idle`."""
    with ExitStack() as stack:

        def start(*arguments: str, is_idle: bool = False) -> TFServingPeer:
            peer = TFServingPeer(*arguments)
            stack.callback(peer.kill)
            if is_idle:
                return peer
            peer.load()
            pairs = pairwise(arguments)
            names = [value.partition("=")[0] for option, value in pairs if option == "--model"]
            models = [f"{peer.url}/v1/models/{name}" for name in names]
            eventually(lambda: not any("LOADING" in httpx.get(model).text for model in models), 120)
            return peer

        yield start


@pytest.fixture(scope="session")
def smollm2_at_tfserving(
    export_to_tfserving: Callable[..., None],
    start_tfserving: Callable[..., TFServingPeer],
    make_server_folder: Callable[[], Path],
) -> TFServingPeer:
    folder = make_server_folder()
    settings = EngineSettings(models_dir=MODELS_DIR)
    export_to_tfserving(Path(prepare_model(settings, "safetensors")), folder)
    return start_tfserving("--model", f"chat={folder}")


@pytest.fixture
def odd() -> Iterator[OddServer]:
    with serving() as server:
        yield server
