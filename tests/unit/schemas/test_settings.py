"""Settings: where they come from, which source wins, and what a mistake is answered with."""

import json
import os
import traceback
from pathlib import Path

import pytest

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import STACK_FILE, load_settings, variable_names
from turnmill.schemas.turns import Lane

SECRET = "hunter2hunter2"  # noqa: S105 - stands for one


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No variable and no running stack of this machine is seen by these tests."""
    for name in list(os.environ):
        if name.upper().startswith("TURNMILL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    return tmp_path


def write_stack_file(data: Path, **settings: object) -> None:
    (data / STACK_FILE).write_text(json.dumps({"settings": settings}))


def test_variables_are_read_into_their_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNMILL_DATABASE__URL", "postgresql://here/db")
    monkeypatch.setenv("TURNMILL_WORKER__LEASE_S", "2.5")
    monkeypatch.setenv("TURNMILL_WORKER__LANES", '["quarantine"]')
    settings = load_settings()
    assert settings.database.url.get_secret_value() == "postgresql://here/db"
    assert settings.worker.lease_s == 2.5
    assert settings.worker.lanes == (Lane.QUARANTINE,)
    assert settings.worker.concurrency == 32


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("TURNMILL_WORKER__LEASE", "TURNMILL_WORKER__LEASE_S"),
        ("TURNMILL_DATABASE_URL", "TURNMILL_DATABASE__URL"),
        ("turnmill_broker__ulr", "TURNMILL_BROKER__URL"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_name_that_was_meant(
    variable: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, SECRET)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert f"{variable} is not a setting. Did you mean {meant}?" in refused.value.message
    assert SECRET not in refused.value.message


def test_all_misspelt_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNMILL_ZZZZZZZZZ", "1")
    monkeypatch.setenv("TURNMILL_YYYYYYYYY", "1")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert refused.value.message.count("is not a setting") == 2


def test_every_variable_that_is_listed_is_known_and_there_is_one_per_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = list(variable_names())
    assert len(names) == len(set(names)) > 30
    assert {"TURNMILL_DATA", "TURNMILL_DATABASE__URL", "TURNMILL_LOG__LEVEL"} <= set(names)
    for name in names:
        if name != "TURNMILL_DATA":
            monkeypatch.setenv(name, "x")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "is not a setting" not in refused.value.message


def test_a_running_stack_is_found_where_its_data_lies(data: Path) -> None:
    write_stack_file(data, database={"url": "postgresql://stack/db", "pool_size": 5})
    assert load_settings().database.url.get_secret_value() == "postgresql://stack/db"


def test_the_environment_is_stronger_than_the_stack_and_arguments_are_stronger_still(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack_file(
        data,
        database={"url": "postgresql://stack/db", "pool_size": 5, "connect_timeout_s": 9},
    )
    monkeypatch.setenv("TURNMILL_DATABASE__URL", "postgresql://environment/db")
    monkeypatch.setenv("TURNMILL_DATABASE__POOL_SIZE", "6")
    settings = load_settings(database={"url": "postgresql://argument/db"})
    assert settings.database.url.get_secret_value() == "postgresql://argument/db"
    assert settings.database.pool_size == 6
    assert settings.database.connect_timeout_s == 9


@pytest.mark.parametrize("content", ["", "{", "[]", '{"other": 1}'])
def test_a_broken_stack_file_is_as_good_as_none(data: Path, content: str) -> None:
    (data / STACK_FILE).write_text(content)
    assert load_settings().database.pool_size == 16


@pytest.mark.parametrize(
    "variable",
    [
        "TURNMILL_DATABASE__POOL_SIZE",
        "TURNMILL_WORKER__LEASE_S",
        "TURNMILL_WORKER__LANES",
        "TURNMILL_ENGINE__DTYPE",
        "TURNMILL_LOG__LEVEL",
    ],
)
def test_a_wrong_value_is_named_by_its_variable_and_never_shown(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, SECRET)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert variable in refused.value.message
    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_a_list_that_is_none_is_told_how_to_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNMILL_SEARCH__ENGINES", "google,bing")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    written = """TURNMILL_SEARCH__ENGINES: write a list in JSON, as in '["one", "two"]'"""
    assert written in refused.value.message


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNMILL_API__PORT", "70000")
    monkeypatch.setenv("TURNMILL_RELAY__WINDOW", "0")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "TURNMILL_API__PORT" in refused.value.message
    assert "TURNMILL_RELAY__WINDOW" in refused.value.message


def test_settings_cannot_be_changed_once_read() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.worker.concurrency = 1


@pytest.mark.parametrize(
    ("model", "served_name", "shown"),
    [
        ("someone/Some-Model", None, "some-model"),
        ("/models/Qwen.gguf", None, "qwen.gguf"),
        ("someone/Some-Model", "My Model", "My Model"),
    ],
)
def test_a_model_is_called_by_its_last_component_unless_it_is_given_a_name(
    model: str, served_name: str | None, shown: str
) -> None:
    engine = load_settings(engine={"model": model, "served_name": served_name}).engine
    assert engine.model_name == shown
