"""Cases of what commands suggest next."""

import re
from typing import Any
from uuid import UUID

from tests.integration.printed.doctor_states import (
    configure_desk,
    of_tenant,
    put_delivery,
    stuck,
)
from tests.printed import ELSEWHERE, Place, Printed, prints
from turnmill.producer.accept import accept
from turnmill.producer.api.resources.welcome import _PAGE
from turnmill.producer.batches.backlog import read_backlog
from turnmill.producer.batches.submission import submit
from turnmill.producer.cli import talk
from turnmill.producer.cli.backlogs import answering as batch_commands
from turnmill.producer.cli.channels import simulate
from turnmill.producer.operations.why import Explainer
from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.turns import Lane
from turnmill.workers.consumer.flower import REFUSAL

BOT = "smollm2-135m-instruct"

ELSEWHERE |= {
    ("producer/cli/memory/erasing.py", "see 'turnmill users erasures'"):
        "test_what_still_is_being_sent_is_named",
    ("producer/cli/backlogs/answering.py", "turnmill batch status --watch {…}{…} && {…}"):
        "test_a_run_that_was_cut_off_while_watching_ends_with_all_results",
    ("producer/cli/backlogs/answering.py", "turnmill batch results {…} -o {…}{…}"):
        "test_a_run_that_was_cut_off_while_watching_ends_with_all_results",
    ("producer/cli/backlogs/picture.py", "turnmill batch run {…} -o {…}"):
        "the title of the README's picture, which runs it",
    ("producer/cli/samples/command.py", 'turnmill ask "{…}" --bot {…}{…}'):
        "test_the_commands_that_an_installed_sample_suggests_are_answered",
    ("producer/doctor/work.py", "turnmill status"):
        "test_every_reason_to_wait_is_told_with_what_helps",
    ("schemas/store/tables.py", "turnmill relay"):
        "what a connection calls itself",
    ("producer/operations/why.py", "turnmill doctor"):
        "test_a_valkey_that_takes_no_hints_is_broken_and_says_why",
    ("producer/cli/channels/slack_demo.py", "turnmill doctor"):
        "test_a_running_stack_is_examined",
    ("producer/cli/knowledge/waiting.py", "turnmill up, or turnmill worker"):
        "test_who_waits_for_documents_without_a_worker_is_told_what_to_start",
    ("producer/cli/compression/auto.py", "turnmill models promote {…}"):
        "test_the_examples_lead_from_a_checkpoint_to_the_promoted_artifact",
    ("producer/cli/compression/catalogue.py", "turnmill models pull {…}"):
        "test_messages_name_commands_that_help",
    ("producer/cli/compression/catalogue.py", "turnmill up --model {…}"):
        "test_up_serves_the_model_of_its_option",
    ("workers/engines/checks.py", "turnmill models available"):
        "test_messages_name_commands_that_help",
    ("workers/engines/hub.py", "turnmill models pull {…}"):
        "test_messages_name_commands_that_help",
    ("workers/engines/hub.py", "turnmill models available"):
        "test_messages_name_commands_that_help",
    ("workers/engines/hub_errors.py", "turnmill models available"):
        "test_messages_name_commands_that_help",
    ("workers/engines/models.py", "turnmill models pull {…}"):
        "test_messages_name_commands_that_help",
    ("workers/engines/models.py", "turnmill models available"):
        "test_messages_name_commands_that_help",
    ("producer/cli/compression/models.py", "turnmill models promote {…}"):
        "test_the_examples_lead_from_a_checkpoint_to_the_promoted_artifact",
    ("producer/doctor/installation.py", "'turnmill up' needs it"):
        "what cannot run yet is named; the remedy is pip's",
}  # fmt: skip


def command_in(said: str) -> str:
    """The last command that a text names; it ends its line."""
    found: list[str] = re.findall(r"turnmill [^\n\]]+", said)
    return found[-1].strip().removesuffix("</code>")


def ended_conversations(place: Place, count: int = 1) -> list[UUID]:
    """Conversations without an open turn; their ids."""
    turns = [accept(place.system.database, place.system.request("hello")) for _ in range(count)]
    place.system.database.run("DELETE FROM outbox; UPDATE turns SET state = 'cancelled'")
    return [turn.conversation_id for turn in turns]


def answering(place: Place) -> None:
    place.system.start("relay")
    place.system.start_worker()


@prints("producer/api/resources/welcome.py", "turnmill keys create NAME")
def the_welcome_page(place: Place) -> Printed:
    assert place.turnmill("bots", "list")[0] == 0
    assert "turnmill bots list" in _PAGE
    return Printed(_PAGE, "turnmill keys create NAME", fill={"NAME": "web"})


@prints("producer/cli/admin.py", "turnmill keys create NAME --tenant {…}")
def a_tenant_that_was_created(place: Place) -> Printed:
    _, said = place.turnmill("tenants", "create", "acme & sons")
    command = "turnmill keys create NAME --tenant 'acme & sons'"
    return Printed(said, command, fill={"NAME": "web"})


def batch_of(place: Place, *, is_open: bool) -> str:
    """Submit a batch, answered unless it is to stay open; its id as it is shown."""
    file = place.folder / "tickets.jsonl"
    file.write_text('{"id": "1", "prompt": "Where is my parcel?"}\n')
    system = place.system
    if is_open:
        submit(system.database, system.tenant_id, BOT, read_backlog(file))
    else:
        answering(place)
        assert place.turnmill("batch", "run", str(file), "-o", "first.csv")[0] == 0
    (row,) = place.system.database.run("SELECT id FROM batches")
    return f"batch_{row.id.hex}"


@prints("producer/cli/batch.py", "turnmill batch list --after {…}{…}")
def more_batches(place: Place) -> Printed:
    batch_of(place, is_open=True)
    system, file = place.system, place.folder / "tickets.jsonl"
    submit(system.database, system.tenant_id, BOT, read_backlog(file), name="again")
    newest = system.database.run("SELECT id FROM batches ORDER BY id DESC")[0].id
    _, said = place.turnmill("batch", "list", "--limit", "1")
    return Printed(said, f"turnmill batch list --after batch_{newest.hex}")


@prints("producer/cli/batch.py", "{…}: turnmill batch {…} {…}{…}")
@prints("producer/operations/why.py", "turnmill batch resume {…}")
def a_batch_that_is_paused(place: Place) -> Printed:
    batch = batch_of(place, is_open=True)
    _, said = place.turnmill("batch", "pause", batch)
    (turn,) = place.system.database.run("SELECT id FROM turns")

    def reason() -> Any:
        return Explainer(place.system.database, place.system.settings).explain(turn.id)

    command = f"turnmill batch resume {batch}"
    assert reason().remedy == command
    return Printed(
        said, command, has_helped=lambda: reason().remedy == "turnmill worker --lane batch"
    )


@prints("producer/cli/batch.py", "{…}: turnmill batch {…} {…}{…}")
def a_batch_whose_failed_rows_are_answered_anew(place: Place) -> Printed:
    batch = batch_of(place, is_open=False)
    place.system.database.run("UPDATE turns SET state = 'failed'; DELETE FROM replies")
    _, said = place.turnmill("batch", "retry", batch, "--failed")
    return Printed(said, f"turnmill batch status --watch {batch}")


@prints("producer/cli/backlogs/answering.py", "turnmill batch retry {…} --failed{…}")
def rows_that_failed(place: Place) -> Printed:
    batch = batch_of(place, is_open=False)
    run = place.system.database.run
    run("UPDATE turns SET state = 'failed', error_code = 'bad'; DELETE FROM replies")
    file = place.folder / "tickets.jsonl"
    status, said = place.turnmill("batch", "run", str(file), "-o", "second.csv")
    assert status == 1 and "--overwrite" in said
    return Printed(
        said, f"turnmill batch retry {batch} --failed",
        has_helped=lambda: run("SELECT state FROM turns")[0].state != "failed",
    )  # fmt: skip


@prints("producer/cli/backlogs/answering.py", "The batch is done and its replies are kept")
def results_that_cannot_be_written(place: Place) -> Printed:
    """The folder of the results goes away while the batch runs."""

    def refuse(*_: Any, **__: Any) -> None:
        raise InvalidInput("There is no folder.")

    with place.monkeypatch.context() as patch:
        patch.setattr(batch_commands, "write_results", refuse)
        answering(place)
        file = place.folder / "tickets.jsonl"
        file.write_text('{"id": "1", "prompt": "Where is my parcel?"}\n')
        status, said = place.turnmill("batch", "run", str(file), "-o", "first.csv")
    assert status == 64
    return Printed(
        said,
        command_in(said),
        fill={"NEW.csv": str(place.folder / "new.csv")},
        has_helped=(place.folder / "new.csv").exists,
    )


@prints("producer/cli/bots.py", "'turnmill bots save {…}' would bring it back")
def a_bot_that_was_deleted(place: Place) -> Printed:
    place.turnmill("bots", "save", "support")
    _, said = place.turnmill("bots", "delete", "support")
    return Printed(
        said, "turnmill bots save support",
        has_helped=lambda: "support" in place.turnmill("bots", "list")[1],
    )  # fmt: skip


@prints("producer/cli/channels/conversations.py", "turnmill conversations answer {…}")
def a_conversation_that_was_handed_off(place: Place) -> Printed:
    (conversation,) = ended_conversations(place)
    _, said = place.turnmill("conversations", "hand-off", f"conv_{conversation.hex}")
    return Printed(
        said,
        f'turnmill conversations answer conv_{conversation.hex} "…"',
        fill={"…": "It is on its way."},
        has_helped=lambda: place.system.count("true") == 2,
    )


@prints("producer/cli/channels/conversations.py", "turnmill conversations list --after {…}{…}")
def more_conversations_than_a_page_has(place: Place) -> Printed:
    ended_conversations(place, 3)
    of_tenant(place, "conversations")
    place.system.database.run(
        "UPDATE conversations SET handed_off_at = now(), handed_off_because = 'a test'"
    )
    words = ("conversations", "list", "--limit", "2", "--tenant", "acme & sons")
    _, said = place.turnmill(*words)
    command = command_in(said)
    assert command.endswith(" --tenant 'acme & sons'")
    return Printed(said, command)


@prints("producer/cli/channels/deliveries.py", "turnmill deliveries list{…}")
def deliveries_that_cannot_be_retried(place: Place) -> Printed:
    put_delivery(place, "sent")
    (row,) = place.system.database.run("SELECT id FROM deliveries")
    status, said = place.turnmill("deliveries", "retry", f"dlv_{row.id.hex}")
    assert status == 1
    return Printed(said, "turnmill deliveries list")


@prints("producer/cli/channels/simulate.py", "turnmill deliver")
def a_simulated_event_whose_reply_nobody_delivers(place: Place) -> Printed:
    turn = accept(place.system.database, place.system.request("hello"))
    put_delivery(place, "queued", turn.turn_id, turn.conversation_id)
    place.system.database.run("UPDATE deliveries SET error_message = NULL")  # nobody has tried
    place.monkeypatch.setattr(simulate, "DELIVERY_S", 0.0)
    simulate._show_delivery(place.system, turn.turn_id)
    configure_desk(place)
    said = place.fixture("capsys").readouterr().out
    return Printed(said, "turnmill deliver", serves="deliver.consuming")


@prints("producer/cli/operations/lanes.py", "turnmill lanes resume {…}{…}")
def a_lane_that_was_just_paused(place: Place) -> Printed:
    _, said = place.turnmill("lanes", "pause", "batch", "--model", BOT)
    return Printed(
        said, f"turnmill lanes resume batch --model {BOT}",
        has_helped=lambda: "is paused" not in place.turnmill("lanes", "list")[1],
    )  # fmt: skip


@prints("producer/cli/talk.py", "turnmill chat --conversation {…}{…}")
def a_chat_that_was_left(place: Place) -> Printed:
    turn = accept(place.system.database, place.system.request("hello"))
    conversation = f"conv_{turn.conversation_id.hex}"
    status, said = place.turnmill("chat", "--conversation", conversation)
    assert status == 0
    return Printed(said, f"turnmill chat --conversation {conversation}")


@prints("producer/cli/talk.py", "turnmill turns show {…}{…}")
def a_question_that_was_left(place: Place) -> Printed:
    async def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    with place.monkeypatch.context() as patch:
        patch.setattr(talk, "print_reply", leave)
        status, said = place.turnmill("ask", "Where is my parcel?")
    assert status == 130
    return Printed(said, command_in(said))


@prints("producer/cli/views/status_view.py", "turnmill worker")
def a_status_without_workers(place: Place) -> Printed:
    _, said = place.turnmill("status")
    return Printed(
        said, "turnmill worker", serves="worker.consuming",
        has_helped=lambda: "consuming" in place.turnmill("status")[1],
    )  # fmt: skip


@prints("producer/cli/views/turns_view.py", "turnmill turns show {…}{…}")
def a_turn_of_another_tenant_that_was_found(place: Place) -> Printed:
    turn = accept(place.system.database, place.system.request("hello"))
    of_tenant(place, "turns")
    shown = f"turn_{turn.turn_id.hex}"
    _, said = place.turnmill("turns", "find", shown)
    return Printed(said, f"turnmill turns show {shown} --tenant 'acme & sons'")


@prints("producer/cli/views/turns_view.py", "turnmill deliveries retry {…}{…}; mend")
def a_reply_of_another_tenant_that_did_not_reach_its_channel(place: Place) -> Printed:
    turn = accept(place.system.database, place.system.request("hello"))
    put_delivery(place, "failed", turn.turn_id, turn.conversation_id)
    place.system.database.run("DELETE FROM outbox; UPDATE turns SET state = 'completed'")
    of_tenant(place, "turns", "deliveries")
    _, said = place.turnmill("turns", "find", f"turn_{turn.turn_id.hex}")
    (found,) = re.findall(r"dlv_\w+", said)
    return Printed(
        said, f"turnmill deliveries retry {found} --tenant 'acme & sons'",
        has_helped=lambda: not place.system.database.run(
            "SELECT FROM deliveries WHERE state = 'failed'"
        ),
    )  # fmt: skip


@prints("producer/operations/why.py", "turnmill relay")
def a_turn_that_nobody_publishes(place: Place) -> Printed:
    place.system.start_worker()
    stuck(place)
    _, said = place.turnmill("status")
    return Printed(
        said, "turnmill relay", serves="relay.started",
        has_helped=lambda: place.system.count("state = 'completed'") == 1,
    )  # fmt: skip


@prints("producer/operations/remedies.py", "turnmill worker --lane {…}{…}")
def a_turn_that_nobody_answers(place: Place) -> Printed:
    accept(place.system.database, place.system.request("hello", lane=Lane.BATCH))
    place.system.start("relay")
    _, said = place.turnmill("status")
    return Printed(
        said, "turnmill worker --lane batch", serves="worker.consuming",
        has_helped=lambda: place.system.count("state = 'completed'") == 1,
    )  # fmt: skip


def made_study(place: Place) -> str:
    """Make a study of one reply; what is printed."""
    file = place.folder / "replies.csv"
    file.write_text("prompt,reply\nWhere is my parcel?,On its way.\n")
    status, said = place.turnmill("studies", "create", "november", "--from", str(file))
    assert status == 0, said
    return said


@prints("producer/cli/studies/manage.py", "turnmill studies invite {…} RATER{…}")
def a_study_without_raters(place: Place) -> Printed:
    return Printed(
        made_study(place),
        "turnmill studies invite november RATER",
        fill={"RATER": "alice"},
        has_helped=lambda: "alice" in place.turnmill("studies", "show", "november")[1],
    )


@prints("producer/studies/lookup.py", "turnmill studies list")
def a_study_that_there_is_not(place: Place) -> Printed:
    made_study(place)
    status, said = place.turnmill("studies", "show", "december")
    assert status == 64
    return Printed(said, "turnmill studies list")


@prints("workers/consumer/flower.py", "turnmill workers drain ID")
def a_button_of_flower_that_stops_a_worker(place: Place) -> Printed:
    worker = place.system.start_worker()
    (row,) = place.system.database.run("SELECT id FROM worker_liveness")
    return Printed(
        REFUSAL, "turnmill workers drain ID", fill={"ID": f"worker_{row.id.hex}"},
        has_helped=lambda: not worker.is_running,
    )  # fmt: skip


@prints("workers/consumer/flower.py", "turnmill lanes pause LANE")
def a_button_of_flower_that_takes_a_queue_away(place: Place) -> Printed:
    return Printed(
        REFUSAL, "turnmill lanes pause LANE", fill={"LANE": "batch"},
        has_helped=lambda: "batch" in place.turnmill("lanes", "list")[1],
    )  # fmt: skip


@prints("workers/consumer/flower.py", "turnmill turns cancel ID")
def a_button_of_flower_that_revokes_a_task(place: Place) -> Printed:
    turn = accept(place.system.database, place.system.request("hello"))
    return Printed(
        REFUSAL, "turnmill turns cancel ID", fill={"ID": f"turn_{turn.turn_id.hex}"},
        has_helped=lambda: place.system.count("state = 'cancelled'") == 1,
    )  # fmt: skip


def synced(place: Place) -> str:
    """Make a collection of two documents; what is printed."""
    folder = place.folder / "docs"
    folder.mkdir()
    for name in ("a.md", "b.md"):
        (folder / name).write_text("A kettle that leaks may be sent back.")
    status, said = place.turnmill("knowledge", "sync", "shop", str(folder), "--no-wait")
    assert status == 0, said
    return said


@prints("producer/cli/knowledge/group.py", "turnmill bots save BOT --policy knowledge={…}{…}")
def a_collection_that_no_bot_reads(place: Place) -> Printed:
    return Printed(
        synced(place),
        "turnmill bots save BOT --policy knowledge=shop",
        fill={"BOT": "support"},
        has_helped=lambda: "shop" in place.turnmill("bots", "show", "support")[1],
    )


@prints("producer/cli/knowledge/group.py", "turnmill knowledge show {…}{…}")
def documents_that_wait(place: Place) -> Printed:
    return Printed(synced(place), "turnmill knowledge show shop")


@prints("producer/cli/knowledge/group.py", "turnmill knowledge sync NAME FOLDER")
def no_collection_yet(place: Place) -> Printed:
    (place.folder / "docs").mkdir()
    _, said = place.turnmill("knowledge", "list")
    return Printed(
        said,
        "turnmill knowledge sync NAME FOLDER",
        fill={"NAME": "shop", "FOLDER": str(place.folder / "docs")},
        has_helped=lambda: "shop" in place.turnmill("knowledge", "list")[1],
    )


@prints("producer/cli/knowledge/group.py", "turnmill knowledge show {…} --after '{…}'")
def a_page_of_documents(place: Place) -> Printed:
    synced(place)
    _, said = place.turnmill("knowledge", "show", "shop", "--limit", "1")
    return Printed(said, "turnmill knowledge show shop --after 'a.md'")


@prints("producer/cli/memory/group.py", "turnmill users list --after '{…}'")
def more_users(place: Place) -> Printed:
    for user in ("api:ada", "api:bob"):
        place.turnmill("users", "remember", user, "city", "Bremen")
    _, said = place.turnmill("users", "list", "--limit", "1")
    return Printed(said, "turnmill users list --after 'api:ada'")
