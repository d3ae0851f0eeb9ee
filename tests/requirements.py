"""What tests need of this machine: where it is missing, they are skipped at home and fail in CI.

A pytest plugin; `tests/conftest.py` registers it.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NoReturn

import pytest


def is_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("true", "1")


def missing(reason: str) -> NoReturn:
    """Skip the test at home; fail it in CI, where nothing may go untested."""
    if is_ci():
        pytest.fail(reason)
    pytest.skip(reason)


def require_installed(package: str, extra: str) -> None:
    """Look for a package without importing it, which other processes may do."""
    if find_spec(package) is None:
        missing(f"pip install 'turnmill[{extra}]' for the tests that need {package}")


def pytest_configure() -> None:
    """Make `pytest.importorskip` an import in CI, for every file that calls it.

    A helper of our own in its place would need `noqa: E402` wherever it comes before imports:
    linters know pytest's.
    """
    if is_ci():
        pytest.importorskip = _import  # type: ignore[assignment]


def _import(module: str, **_: Any) -> Any:
    return import_module(module)
