"""Lists as programs read them: each prints what its shape says, of what is really there."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.unit.producer.views.test_lists import LISTS
from turnmill.producer.accept import accept
from turnmill.producer.cli.app import main
from turnmill.schemas.ids import new_id
from turnmill.schemas.store.knowledge.verdicts import Verdict

#: Run `turnmill` with these words; its standard output.
Turnmill = Callable[..., str]

#: Markup to Rich: a program gets it as it is.
HOSTILE = "[red]Ärger[/] 退货"

GAP = """
INSERT INTO knowledge_gaps (id, tenant_id, collection_id, turn_id, question, verdict)
SELECT %s, %s, id, %s, %s, %s FROM collections
"""


@pytest.fixture
def system(
    make_system: Callable[..., Any],
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    system = make_system(database_url, "amqp://nobody")
    for name, value in system.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    return system


@pytest.fixture
def turnmill(
    system: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Turnmill:
    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["turnmill", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        assert not end.value.code, said.err
        return said.out

    return run


@pytest.fixture
def listed(turnmill: Turnmill) -> Callable[..., Any]:
    """A list's JSON, which must be of the shape that is documented."""

    def read(name: str, *words: str) -> Any:
        said = turnmill(*name.split(), "--json", *words)
        shape = LISTS[name]
        if isinstance(shape, tuple):
            assert json.loads(said).keys() == shape[1]
        else:
            TypeAdapter(shape).validate_json(said, extra="forbid")
        return json.loads(said)

    return read


@pytest.mark.parametrize("name", [name for name in LISTS if name != "batch status"])
def test_a_list_of_nothing_is_a_list(
    listed: Callable[..., Any], tmp_path: Path, turnmill: Turnmill, name: str
) -> None:
    (tmp_path / "turnmill.toml").touch()
    if name == "knowledge show":
        (tmp_path / "empty").mkdir()
        turnmill("knowledge", "sync", "shop", str(tmp_path / "empty"))
    assert listed(name, *(["shop"] if name == "knowledge show" else [])) is not None


def test_accounts_and_bots(listed: Callable[..., Any], turnmill: Turnmill) -> None:
    turnmill("tenants", "create", "acme")
    key = turnmill("keys", "create", HOSTILE, "--tenant", "acme", "--scope", "metrics").strip()
    turnmill("bots", "save", "b", "--instructions", HOSTILE, "--temperature", "0.5")
    (acme, _) = listed("tenants list")["tenants"]
    assert (acme["name"], acme["bot_count"], acme["key_count"]) == ("acme", 1, 1)
    (shown,) = listed("keys list", "--tenant", "acme")["keys"]
    assert (shown["name"], shown["scopes"], shown["revoked_at"]) == (HOSTILE, ["metrics"], None)
    assert key.startswith(shown["starts_with"])
    turnmill("keys", "revoke", shown["key_id"], "--tenant", "acme")
    assert listed("keys list", "--tenant", "acme")["keys"][0]["revoked_at"]
    bots = {each["name"]: each for each in listed("bots list")["bots"]}
    assert (bots["b"]["instructions"], bots["b"]["params"]) == (HOSTILE, {"temperature": 0.5})


def test_batches_with_their_states(system: Any, listed: Callable[..., Any], tmp_path: Path) -> None:
    from turnmill.producer.batches import control
    from turnmill.producer.batches.backlog import read_backlog
    from turnmill.producer.batches.lookup import list_batches
    from turnmill.producer.batches.submission import submit
    from turnmill.schemas.turns import GenerationParams

    (tmp_path / "tickets.csv").write_text("prompt\none\ntwo\n")
    backlog = read_backlog(tmp_path / "tickets.csv")
    place = (system.database, system.tenant_id)
    submit(*place, system.settings.engine.model_name, backlog, GenerationParams())
    (shown,) = listed("batch list")["batches"]
    assert (shown["name"], shown["total"], shown["ended"], shown["state"]) == (
        "tickets.csv", 2, 0, "open",
    )  # fmt: skip
    (batch,) = list_batches(*place)
    now = listed("batch status", shown["batch_id"][:14])
    assert now.items() >= shown.items()
    assert (now["states"], now["failures"]) == ({"queued": 2}, [])
    control.pause(system.database, batch)
    assert listed("batch list")["batches"][0]["state"] == "paused"
    control.cancel_batch(system.database, batch)
    (shown,) = listed("batch list")["batches"]
    assert (shown["state"], shown["ended"]) == ("cancelled", 2)
    submit(*place, system.settings.engine.model_name, backlog, GenerationParams(), name="again")
    newest = listed("batch list", "--limit", "1")
    assert [each["name"] for each in newest["batches"]] == ["again"]
    older = listed("batch list", "--limit", "1", "--after", newest["next"])
    assert ([each["name"] for each in older["batches"]], older["next"]) == (["tickets.csv"], None)


def test_knowledge_and_gaps(
    system: Any, listed: Callable[..., Any], turnmill: Turnmill, tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.md").write_text(f"# {name}\n")
    turnmill("knowledge", "sync", "shop", str(tmp_path), "--no-wait")
    (shop,) = listed("knowledge list")["collections"]
    assert (shop["name"], shop["document_count"], shop["gate"]) == ("shop", 2, None)
    page = listed("knowledge show", "shop", "--limit", "1")
    assert [each["uri"] for each in page["documents"]] == ["a.md"]
    page = listed("knowledge show", "shop", "--limit", "1", "--after", page["next"])
    assert ([each["uri"] for each in page["documents"]], page["next"]) == (["b.md"], None)
    turns = set()
    for question in (HOSTILE, "Do you sell kettles of copper?"):
        turn_id = accept(system.database, system.request(question)).turn_id
        row = (new_id(), system.tenant_id, turn_id, question, Verdict.UNCERTAIN)
        system.database.run(GAP, row)
        turns.add(f"turn_{turn_id.hex}")
    found = listed("gaps list", "--limit", "1")
    assert (len(found["gaps"]), found["left_out"]) == (1, 1)
    found = listed("gaps list")
    assert {each["question"] for each in found["gaps"]} > {HOSTILE}
    assert {each["turn_id"] for each in found["gaps"]} == turns


def test_users_studies_and_channels(
    listed: Callable[..., Any], turnmill: Turnmill, tmp_path: Path
) -> None:
    for user in ("api:1", "api:2"):
        turnmill("users", "remember", user, "city", HOSTILE)
    page = listed("users list", "--limit", "1")
    assert ([each["key"] for each in page["users"]], page["next"]) == (["api:1"], "api:1")
    rest = listed("users list", "--limit", "1", "--after", page["next"])
    assert ([each["key"] for each in rest["users"]], rest["next"]) == (["api:2"], None)
    turnmill("users", "forget", "api:1", "--yes")
    assert [each["key"] for each in listed("users list")["users"]] == ["api:2"]
    (erased,) = listed("users erasures")["erasures"]
    assert erased["done_at"]
    assert "api:1" not in json.dumps(erased)
    (tmp_path / "rated.csv").write_text("prompt,reply\nHello?,Hello!\n")
    turnmill("studies", "create", "s", "--from", str(tmp_path / "rated.csv"))
    (study,) = listed("studies list")["studies"]
    assert (study["name"], study["item_count"] >= 1, study["done"]) == ("s", True, 0)
    toml = '[channels.hook]\nkind = "webhook"\nbot = "b"\nsecret = { env = "X" }\nurl = "https://a.test"\n'
    (tmp_path / "turnmill.toml").write_text(toml)
    (channel,) = listed("channels list")["channels"]
    assert (channel["name"], channel["kind"], channel["path"]) == (
        "hook", "webhook", "/channels/hook",
    )  # fmt: skip
