"""The doctor names what keeps bots from searching, and how to mend it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from turnmill.infra.migrations import head_revision
from turnmill.infra.mocks.searxng import Page, SearXNG
from turnmill.producer.doctor import Finding, Level, diagnose
from turnmill.producer.tenants import ensure_defaults, save_bot
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.channels.unknown import Step, UnknownPolicy
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import load_settings
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.search.registry import try_search


@pytest.fixture
def web() -> Iterator[SearXNG]:
    with SearXNG(Page("https://wiki.example/", "Wikipedia", "An encyclopedia.")) as server:
        yield server


@pytest.fixture(autouse=True)
def bot(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, web: SearXNG) -> None:
    """A bot that searches, and a server."""
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    monkeypatch.setenv("TURNMILL_DATABASE__URL", database_url)
    monkeypatch.setenv("TURNMILL_SEARCH__URL", web.url)
    settings = load_settings()
    database = Database(settings.database)
    tenant_id = ensure_defaults(database, settings)
    unknown = UnknownPolicy(steps=(Step.SEARCH, Step.UNCERTAIN))
    policies = Policies(knowledge="shop", unknown=unknown)
    params = GenerationParams()
    save_bot(database, tenant_id, "support", "m", "", params, policies=policies)
    database.close()


def found() -> list[Finding]:
    return [each for each in diagnose(head_revision(), try_search) if each.what == "search"]


def test_of_a_server_that_finds_something_nothing_is_said(web: SearXNG) -> None:
    assert found() == []
    assert web.count("search") == 1


def test_a_refusal_is_named_with_its_remedy(web: SearXNG) -> None:
    web.formats.remove("json")
    [finding] = found()
    assert finding.level is Level.WARNING
    assert "403" in finding.detail
    assert "support" in finding.detail
    assert "'json' to 'formats'" in finding.fix


def test_a_server_whose_engines_find_nothing_is_named(web: SearXNG) -> None:
    web.pages.clear()
    [finding] = found()
    assert (finding.level, "/stats" in finding.fix) == (Level.WARNING, True)


def test_a_bot_that_searches_without_a_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TURNMILL_SEARCH__URL")
    [finding] = found()
    assert (finding.level, "TURNMILL_SEARCH__URL" in finding.fix) == (Level.NOTE, True)


def test_a_bot_that_has_the_step_and_no_collection_is_named(
    database_url: str, web: SearXNG
) -> None:
    database = Database(load_settings().database)
    database.run("UPDATE bots SET policies = policies - 'knowledge' RETURNING id")
    database.close()
    [finding] = found()
    assert (finding.level, "support" in finding.detail) == (Level.NOTE, True)
    assert "an empty one will do" in finding.fix
    assert web.calls == []


def test_where_no_bot_searches_nobody_is_asked(database_url: str, web: SearXNG) -> None:
    database = Database(load_settings().database)
    database.run("UPDATE bots SET policies = '{}' RETURNING id")
    database.close()
    assert found() == []
    assert web.calls == []
