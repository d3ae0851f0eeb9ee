"""What is missing on a machine: skipped at home, a failure in CI."""

import pytest

from tests import requirements


@pytest.fixture(params=["true", "1", "True"])
def ci(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", request.param)
    monkeypatch.setattr(pytest, "importorskip", pytest.importorskip)
    requirements.pytest_configure()


def test_what_is_missing_skips_its_tests_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"turnmill\[dev\]"):
        requirements.require_installed("no_such_package", "dev")


def test_what_is_missing_fails_in_ci(ci: None) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"turnmill\[dev\]"):
        requirements.require_installed("no_such_package", "dev")
    with pytest.raises(ModuleNotFoundError):
        pytest.importorskip("no_such_package", reason="pip install it")
    assert pytest.importorskip("json").loads("1") == 1
