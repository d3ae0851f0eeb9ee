"""Cases of error messages."""

import asyncio
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from slack_sdk import WebClient
from sqlalchemy import NullPool, create_engine

from tests.integration.printed.doctor_states import (
    configure_desk,
    of_tenant,
    put_delivery,
)
from tests.printed import ELSEWHERE, Place, Printed, prints
from turnmill.compression.artifact import BaseModelRecord, Manifest, write_artifact
from turnmill.compression.conversations import tenant_conversations
from turnmill.compression.store import ModelStore
from turnmill.infra import migrations
from turnmill.infra.mocks.telegram.api import TOKEN
from turnmill.producer.accept import accept
from turnmill.producer.api import auth
from turnmill.producer.api.pointers import pointer
from turnmill.producer.api.resources.completions import _ignores_tools
from turnmill.producer.bots import read_bot
from turnmill.producer.channels import checks
from turnmill.producer.channels.base import Request
from turnmill.producer.channels.slack.check import _socket_mode
from turnmill.producer.channels.telegram.channel import TelegramChannel
from turnmill.producer.doctor import diagnose
from turnmill.producer.evaluation.replay import version_of
from turnmill.producer.handoff import answer, hand_off
from turnmill.producer.operations import lanes
from turnmill.producer.operations.workers import find_worker
from turnmill.producer.parked.replay import foresee
from turnmill.producer.tenants import WRONG_KEY, create_tenant, find_tenant, set_training
from turnmill.schemas.capabilities import Capabilities
from turnmill.schemas.channels.configuration import find_channel
from turnmill.schemas.errors import TurnmillError
from turnmill.schemas.openai.requests import ChatCompletionRequest
from turnmill.schemas.postgres.database import Database
from turnmill.schemas.settings import load_settings
from turnmill.schemas.store.fleet.release import NEEDED_REVISION, refuse_older_database
from turnmill.schemas.tenants import Caller, Scope
from turnmill.schemas.turns import GenerationParams, Lane, Tool
from turnmill.workers.delivery.calls.posting import Answer
from turnmill.workers.delivery.webhook import _judge
from turnmill.workers.turn.leases import Leases
from turnmill.workers.upkeep import pruner
from turnmill.workers.upkeep.pruner import prune

BOT = "smollm2-135m-instruct"
APP_TOKEN = "xapp-made-up"  # noqa: S105

ELSEWHERE |= {
    ("producer/channels/discord/check.py", "turnmill channels check NAME"):
        "test_commands_and_the_address_are_registered_and_checked",
    ("producer/cli/stack.py", "turnmill demo --slack --data"):
        "test_the_slack_demo_shows_a_thread_that_is_answered_collected_and_handed_over",
    ("compression/evaluate/remarks.py", "turnmill bench engine"):
        "what measures speed is named; nothing is to be mended",
    ("compression/texts.py", "turnmill compress chats"):
        "where the conversations may have come from is named; the remedy is to give more",
    ("compression/store.py", "Promote it again: turnmill models promote"):
        "test_the_examples_lead_from_a_checkpoint_to_the_promoted_artifact",
}  # fmt: skip


def raised(call: Callable[[], object]) -> str:
    """The message of the error that a call raises."""
    with pytest.raises(TurnmillError) as caught:
        call()
    return caught.value.message


@prints("producer/api/auth.py", "turnmill keys create NAME")
def a_call_without_a_key(place: Place) -> Printed:
    nothing: Any = None
    message = raised(lambda: asyncio.run(auth._caller(nothing, nothing, None)))
    return Printed(message, "turnmill keys create NAME", fill={"NAME": "web"})


@prints("producer/tenants.py", "turnmill keys create NAME")
def a_call_with_a_wrong_key(place: Place) -> Printed:
    return Printed(WRONG_KEY, "turnmill keys create NAME", fill={"NAME": "web"})


@prints("schemas/tenants.py", "turnmill keys create NAME --scope {…}")
def a_key_without_the_scope(place: Place) -> Printed:
    caller = Caller(place.system.tenant_id, frozenset())
    message = raised(lambda: caller.require(Scope.METRICS))
    command = "turnmill keys create NAME --scope metrics"
    return Printed(message, command, fill={"NAME": "prometheus"})


@prints("producer/api/pointers.py", "takes batches")
def a_client_that_uploads_a_batch(place: Place) -> Printed:
    place.system.start("relay")
    place.system.start_worker()
    file = place.folder / "tickets.jsonl"
    file.write_text('{"id": "1", "prompt": "Where is my parcel?"}\n')
    message = pointer("/v1/batches")
    return Printed(message, "turnmill batch run FILE", fill={"FILE": str(file)})


def bot_that_ignores_tools(place: Place, message: str) -> Printed:
    """The bot keeps what else it has."""
    place.turnmill("bots", "save", BOT, "--instructions", "Be brief.")

    def has_helped() -> bool:
        bot = read_bot(place.system.database, place.system.tenant_id, BOT)
        return bot.ignores_tools and bot.instructions == "Be brief."

    command = "turnmill bots change NAME --ignore-tools"
    return Printed(message, command, fill={"NAME": BOT}, has_helped=has_helped)


@prints("producer/capable.py", "turnmill bots change NAME --ignore-tools")
def tools_that_no_worker_knows(place: Place) -> Printed:
    params = GenerationParams(tools=(Tool(name="find_parcel"),))
    with declaring_worker(place):
        request = place.system.request("hello", params=params)
        message = raised(lambda: accept(place.system.database, request))
    return bot_that_ignores_tools(place, message)


@prints("producer/api/resources/completions.py", "turnmill bots change NAME --ignore-tools")
def functions_the_old_name_of_tools(place: Place) -> Printed:
    body = ChatCompletionRequest.model_validate(
        {
            "model": BOT,
            "messages": [{"role": "user", "content": "hello"}],
            "functions": [{"name": "find_parcel"}],
        }
    )
    services: Any = SimpleNamespace(database=place.system.database)
    message = raised(lambda: _ignores_tools(services, place.system.tenant_id, body))
    return bot_that_ignores_tools(place, message)


@contextmanager
def declaring_worker(place: Place) -> Iterator[None]:
    """A live worker whose engine declares that it answers text with text, and no more."""
    system = place.system
    leases = Leases(system.database, system.settings.worker, model=BOT, engine="echo")
    leases.capabilities = Capabilities()
    leases.start()
    try:
        yield
    finally:
        leases.close()


@prints("producer/channels/checks.py", "turnmill channels apply")
def a_channel_without_its_bot(place: Place) -> Printed:
    configure_desk(place)
    file = place.folder / "turnmill.toml"
    file.write_text(file.read_text().replace(BOT, "support"))
    return Printed(
        bots_of_channels(),
        "turnmill bots save support",
        has_helped=lambda: not bots_of_channels(),
    )


@prints("producer/channels/checks.py", "turnmill channels apply")
def a_channel_whose_bot_is_in_its_file(place: Place) -> Printed:
    configure_desk(place)
    file = place.folder / "turnmill.toml"
    file.write_text(file.read_text().replace(BOT, "support"))
    message = bots_of_channels()
    assert "Add [bots.support] to the file" in message
    file.write_text(f"[bots.support]\n{file.read_text()}")
    return Printed(message, "turnmill channels apply", has_helped=lambda: not bots_of_channels())


def bots_of_channels() -> str:
    return "".join(f"{f.detail} {f.fix}" for f in diagnose() if f.what == "bots of channels")


@prints("producer/channels/telegram/check.py", "turnmill channels check NAME")
@prints("producer/channels/telegram/channel.py", "turnmill channels check NAME")
def an_address_that_telegram_does_not_know(place: Place) -> Printed:
    api = place.fixture("telegram")
    place.monkeypatch.setenv("TELEGRAM_TOKEN", TOKEN)
    place.monkeypatch.setenv("SECRET_TOKEN", "made-up")
    file = place.folder / "turnmill.toml"
    file.write_text(f"""
        [channels.chat]
        kind = "telegram"
        bot = "{BOT}"
        bot_token = {{ env = "TELEGRAM_TOKEN" }}
        secret_token = {{ env = "SECRET_TOKEN" }}
        username = "acme_bot"
        api_url = "{api.url}"
    """)
    place.monkeypatch.setenv("TURNMILL_CONFIG", str(file))
    section: Any = find_channel(load_settings().config_path, "chat")
    unsigned = Request("POST", {}, b"{}", 0.0)
    message = raised(lambda: TelegramChannel("chat", section).verify(unsigned))
    found = checks.check_channel(place.system.database, section)
    message += "".join(finding.fix for finding in found)
    command = "turnmill channels check NAME --url URL --register"
    assert message.count(command) == 2
    return Printed(
        message,
        command,
        fill={"NAME": "chat", "URL": "https://bots.example.com"},
        has_helped=lambda: api.webhook["url"] == "https://bots.example.com/channels/chat",
    )


@prints("producer/cli/stack.py", "turnmill keys create NAME", "turnmill ask", "next 'turnmill up'")
@prints("producer/cli/context.py", "Start one with 'turnmill up'")
@prints("producer/doctor/__init__.py", "'turnmill up', or set")
def no_servers_at_all(place: Place) -> Printed:
    folder = place.fixture("server_folder")
    for name in ("TURNMILL_DATABASE__URL", "TURNMILL_BROKER__URL"):
        place.monkeypatch.setenv(name, "")
    place.monkeypatch.setenv("TURNMILL_DATA", str(folder))
    message = "".join(finding.fix for finding in diagnose() if finding.what == "servers")
    status, said = place.turnmill("bots", "list")
    assert (status, "'turnmill up'" in said, "'turnmill up'" in message) == (69, True, True)
    return Printed(
        message,
        "turnmill up",
        serves=f"In other terminals, first: export TURNMILL_DATA={folder}",
        status=128 + signal.SIGTERM,
        then=("turnmill keys create NAME", "turnmill ask 'Where is my parcel?'"),
        fill={"NAME": "web"},
    )


@prints("producer/tenants.py", "turnmill tenants list")
@prints("compression/conversations.py", "turnmill tenants list")
def a_tenant_that_there_is_not(place: Place) -> Printed:
    database = place.system.database
    command = "turnmill tenants list"
    calls = (
        lambda: find_tenant(database, "acme"),
        lambda: set_training(database, "acme", is_allowed=True),
        lambda: tenant_conversations(database, "acme"),
    )
    messages = [raised(call) for call in calls]
    assert all(command in message for message in messages)
    return Printed("\n".join(messages), command)


@prints("producer/tenants.py", "turnmill tenants create {…}")
def a_tenant_to_create(place: Place) -> Printed:
    message = raised(lambda: find_tenant(place.system.database, "acme & sons"))
    return Printed(
        message,
        "turnmill tenants create 'acme & sons'",
        has_helped=lambda: find_tenant(place.system.database, "acme & sons"),
    )


@prints("compression/conversations.py", "turnmill tenants training {…} --allow")
def a_tenant_that_has_not_agreed(place: Place) -> Printed:
    create_tenant(place.system.database, "acme & sons", place.system.settings)

    def ask() -> object:
        return tenant_conversations(place.system.database, "acme & sons")

    return Printed(
        raised(ask),
        "turnmill tenants training 'acme & sons' --allow",
        has_helped=lambda: "has no answered conversation" in raised(ask),
    )


def refuse() -> None:
    """What each process does when it starts."""
    with closing(Database(load_settings().database)) as database:
        refuse_older_database(database.fetch)


@prints("schemas/store/fleet/release.py", "Create them: turnmill db upgrade")
def an_empty_database(place: Place) -> Printed:
    place.monkeypatch.setenv("TURNMILL_DATABASE__URL", place.fixture("empty_database_url"))
    return Printed(raised(refuse), "turnmill db upgrade", has_helped=lambda: refuse() is None)


@prints("schemas/store/fleet/release.py", "'turnmill db upgrade' of this release")
def a_database_of_the_release_before(place: Place) -> Printed:
    downgrade(place, f"{int(NEEDED_REVISION) - 1:04}")
    return Printed(raised(refuse), "turnmill db upgrade", has_helped=lambda: refuse() is None)


def downgrade(place: Place, revision: str) -> None:
    """Undo the last migrations."""
    configuration = Config()
    configuration.set_main_option("script_location", next(iter(migrations.__path__)))
    configuration.set_main_option("path_separator", "os")
    url = place.system.settings.database.url.get_secret_value()
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
    with engine.begin() as connection:
        configuration.attributes["connection"] = connection
        command.downgrade(configuration, revision)
    engine.dispose()


@prints("producer/operations/lanes.py", "turnmill lanes resume {…}")
def a_pause_that_was_made_for_one_model(place: Place) -> Printed:
    database = place.system.database
    lanes.pause(database, Lane.BATCH, BOT, by="ada@ops", reason="")
    message = raised(lambda: lanes.resume(database, Lane.BATCH, None))
    return Printed(message, f"turnmill lanes resume batch --model {BOT}")


@prints("producer/operations/workers.py", "turnmill workers list")
def a_worker_that_there_is_not(place: Place) -> Printed:
    message = raised(lambda: find_worker(place.system.database, "worker_ffff", 2.0))
    return Printed(message, "turnmill workers list")


@prints("producer/handoff.py", "turnmill conversations hand-off {…}")
def an_answer_to_a_conversation_of_the_bot(place: Place) -> Printed:
    acme = of_tenant(place)
    request = place.system.request("hello").model_copy(update={"tenant_id": acme})
    turn = accept(place.system.database, request)

    def say() -> object:
        return answer(place.system.database, acme, turn.conversation_id, "It is here.", "ada")

    return Printed(
        raised(say),
        f"turnmill conversations hand-off conv_{turn.conversation_id.hex} --tenant 'acme & sons'",
        has_helped=say,
    )


@prints("producer/parked/replay.py", "turnmill conversations resume {…}")
def a_replay_in_a_conversation_that_a_person_answers(place: Place) -> Printed:
    database, acme = place.system.database, of_tenant(place)
    request = place.system.request("hello").model_copy(update={"tenant_id": acme})
    turn = accept(database, request)
    hand_off(database, acme, turn.conversation_id, "a test")
    database.run("UPDATE turns SET state = 'parked'")

    def refusal() -> TurnmillError | None:
        (change,) = foresee(database, acme, [turn.turn_id])
        return change.refusal

    return Printed(
        str(refusal()),
        f"turnmill conversations resume conv_{turn.conversation_id.hex} --tenant 'acme & sons'",
        has_helped=lambda: refusal() is None,
    )


@prints("workers/delivery/webhook.py", "turnmill deliveries retry --failed")
@prints("workers/delivery/dingtalk.py", "turnmill deliveries retry --failed")
def a_delivery_that_was_refused(place: Place) -> Printed:
    put_delivery(place, "failed")
    message = raised(lambda: _judge(Answer(404, None, None)))  # type: ignore[arg-type]
    return Printed(
        message,
        "turnmill deliveries retry --failed",
        has_helped=lambda: not [f for f in diagnose() if "have failed" in f.detail],
    )


@prints("workers/upkeep/pruner.py", "turnmill db prune")
def a_pruner_without_rights(place: Place) -> Printed:
    """Run as the owner of the tables, which the other commands' user is here."""

    def run(self: object) -> None:
        raise psycopg.errors.InsufficientPrivilege("must be owner of table attempts")

    with place.monkeypatch.context() as patch:
        patch.setattr(pruner.Round, "run", run)
        message = raised(
            lambda: prune(place.system.database, place.system.settings.retention, lambda _: True)
        )
    return Printed(message, "turnmill db prune")


@prints("compression/store.py", "Run: turnmill models promote NAME")
def a_store_in_which_nothing_is_promoted(place: Place) -> Printed:
    models = load_settings().models_dir
    store = ModelStore(models)
    manifest = Manifest(
        name="a", base=BaseModelRecord(name="base", sha256="0"), recipe={}, data_sha256="0",
        format="dense", versions={}, files={},
    )  # fmt: skip
    message = raised(store.promoted_path)
    write_artifact(
        store.folder / "a", lambda folder: folder.joinpath("config.json").write_text("{}"), manifest
    )
    return Printed(
        message,
        "turnmill models promote NAME",
        fill={"NAME": "a"},
        has_helped=lambda: store.promoted_path().name == "a",
    )


def configure_slack(place: Place) -> Any:
    """A channel in socket mode; the server that stands in for Slack."""
    server = place.fixture("slack")
    place.monkeypatch.setenv("APP_TOKEN", APP_TOKEN)
    file = place.folder / "turnmill.toml"
    file.write_text(f"""
        [channels.acme]
        kind = "slack"
        bot = "{BOT}"
        bot_token = {{ env = "APP_TOKEN" }}
        app_token = {{ env = "APP_TOKEN" }}
        api_url = "{server.api_url}"
    """)
    place.monkeypatch.setenv("TURNMILL_CONFIG", str(file))
    return server


@prints("producer/channels/slack/check.py", "turnmill socket NAME")
def an_app_in_socket_mode(place: Place) -> Printed:
    server = configure_slack(place)
    section: Any = find_channel(load_settings().config_path, "acme")
    client = WebClient(APP_TOKEN, base_url=server.api_url)
    return Printed(
        _socket_mode(client, section.app_token).detail,
        "turnmill socket NAME",
        fill={"NAME": "acme"},
        serves="socket.connected",
        has_helped=lambda: server.links,
    )


@prints("producer/channels/slack/socket_mode.py", "turnmill channels check {…}")
def an_app_token_that_slack_refuses(place: Place) -> Printed:
    """The check then says what is wrong with the channel, and fails."""
    configure_slack(place)
    place.monkeypatch.setenv("APP_TOKEN", "xapp-wrong")
    status, said = place.turnmill("socket", "acme")
    assert status == 64
    return Printed(said, "turnmill channels check acme", status=1)


@prints("producer/evaluation/replay.py", "turnmill bots list")
def a_bot_that_there_is_not(place: Place) -> Printed:
    message = raised(lambda: version_of(place.system.database, place.system.tenant_id, "nobody"))
    return Printed(message, "turnmill bots list")
