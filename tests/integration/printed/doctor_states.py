"""Cases of the doctor's remedies."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.printed import Place, Printed, prints
from turnmill.infra.migrations import head_revision
from turnmill.producer.accept import accept
from turnmill.producer.doctor import Finding, Level, broker, diagnose
from turnmill.producer.memory.forgetting import forget_user
from turnmill.producer.operations import lanes
from turnmill.producer.tenants import create_tenant
from turnmill.schemas.embedders.registry import EMBEDDERS
from turnmill.schemas.files.files import File, Purpose
from turnmill.schemas.files.local import LocalStorage
from turnmill.schemas.files.opening import open_files, open_storage
from turnmill.schemas.ids import new_id
from turnmill.schemas.settings.engine import EMBEDDER_LIBRARIES
from turnmill.schemas.store.memory.erasures import list_erasures
from turnmill.schemas.turns import Lane
from turnmill.workers.upkeep.indexer import Indexer
from turnmill.workers.upkeep.pruner import prune

#: Its name is no folder's or file's, and needs quoting in a shell.
OTHER_MODEL = "acme's llama"

_FORKS = """
import sys
from celery import Celery
app = Celery("foreign", broker=sys.argv[1], set_as_current=False)
app.conf.worker_prefetch_multiplier = 4
app.worker_main(["worker", "--pool=prefork", "--concurrency=1", "--without-gossip",
                 "--without-mingle", "--loglevel=error"])
"""

Finds = list[Finding]


def found(what: str) -> Finds:
    return [finding for finding in diagnose(head_revision()) if finding.what == what]


def told(finding: Finding) -> str:
    return f"{finding.detail}\n{finding.fix}"


def stuck(place: Place, **changes: object) -> Any:
    """A turn that has been due for an hour."""
    turn = accept(place.system.database, place.system.request("hello"))
    for name, value in changes.items():
        place.system.database.run(f"UPDATE turns SET {name} = %s", (value,))
        place.system.database.run(f"UPDATE outbox SET {name} = %s", (value,))
    old = "clock_timestamp() - interval '1 h'"
    place.system.database.run(f"UPDATE outbox SET due_at = {old}")
    return turn


def of_tenant(place: Place, *tables: str) -> UUID:
    """Give all rows of these tables to another tenant; its id."""
    acme = create_tenant(place.system.database, "acme & sons", place.system.settings)
    for table in tables:
        place.system.database.run(f"UPDATE {table} SET tenant_id = %s", (acme,))
    return acme


@prints("producer/operations/remedies.py", "turnmill worker --lane {…}{…}")
def a_model_of_its_own_that_nobody_serves(place: Place) -> Printed:
    """The worker must answer in the model's name, and with weights that somebody names."""
    stuck(place, model=OTHER_MODEL)
    (finding,) = found("workers")
    return Printed(
        told(finding),
        "TURNMILL_ENGINE__MODEL=WEIGHTS TURNMILL_ENGINE__SERVED_NAME='acme'\"'\"'s llama' "
        "turnmill worker --lane interactive",
        fill={"WEIGHTS": "smollm2-135m-instruct"},
        serves="worker.consuming",
        has_helped=lambda: not [each for each in found("workers") if each.level is Level.BROKEN],
    )


@prints("producer/operations/remedies.py", "turnmill worker --lane {…}{…}")
def a_lane_that_nobody_consumes(place: Place) -> Printed:
    stuck(place)
    (finding,) = found("workers")
    return Printed(
        told(finding),
        "turnmill worker --lane interactive",
        serves="worker.consuming",
        has_helped=lambda: not [each for each in found("workers") if each.level is Level.BROKEN],
    )


@prints("producer/operations/remedies.py", "turnmill worker --lane {…}{…}")
def a_quarantine_that_nobody_consumes(place: Place) -> Printed:
    place.system.start_worker()
    (finding,) = found("workers")
    return Printed(
        told(finding),
        "turnmill worker --lane quarantine --concurrency 1",
        serves="worker.consuming",
        has_helped=lambda: not found("workers"),
    )


@prints("producer/operations/remedies.py", "turnmill worker --lane {…}{…}")
def hints_that_lie_in_the_broker(place: Place) -> Printed:
    place.system.start("relay")
    accept(place.system.database, place.system.request("hello"))
    place.eventually(lambda: found("consumers"), 30)
    (finding,) = found("consumers")
    return Printed(
        told(finding),
        "turnmill worker --lane interactive",
        serves="worker.consuming",
        has_helped=lambda: place.system.count("state = 'completed'") and not found("consumers"),
    )


@prints("producer/doctor/broker.py", "or with --pool threads", "worker_prefetch_multiplier=1")
def a_worker_that_forks_and_hoards(place: Place) -> Printed:
    place.monkeypatch.setattr(broker, "INSPECT_S", 1.0)
    url = place.system.settings.broker.url.get_secret_value()
    worker = subprocess.Popen([sys.executable, "-c", _FORKS, url])
    try:
        place.eventually(lambda: len(found("worker pools")) == 2, 60)
        message = "\n".join(map(told, found("worker pools")))
    finally:
        worker.terminate()
        worker.wait(30)
    assert message.count("'turnmill worker'") == 2
    return Printed(
        message,
        "turnmill worker",
        serves="worker.consuming",
        has_helped=lambda: not found("worker pools"),
    )


@prints("producer/doctor/database.py", "turnmill db upgrade")
def a_database_without_tables(place: Place) -> Printed:
    place.monkeypatch.setenv("TURNMILL_DATABASE__URL", place.fixture("empty_database_url"))
    (finding,) = found("tables")
    return Printed(told(finding), "turnmill db upgrade", has_helped=lambda: not found("tables"))


@prints("producer/doctor/work.py", "turnmill relay; its log")
def hints_that_nobody_publishes(place: Place) -> Printed:
    stuck(place)
    (finding,) = found("relay")
    return Printed(
        told(finding), "turnmill relay", serves="relay.started",
        has_helped=lambda: not found("relay"),
    )  # fmt: skip


@prints("producer/doctor/work.py", "turnmill parked list")
def parked_turns(place: Place) -> Printed:
    return _parked(place, "turnmill parked list")


@prints("producer/doctor/work.py", "turnmill parked list")
def parked_turns_of_another_tenant(place: Place) -> Printed:
    return _parked(place, "turnmill parked list --tenant 'acme & sons'", is_other=True)


def _parked(place: Place, command: str, *, is_other: bool = False) -> Printed:
    turn = accept(place.system.database, place.system.request("hello"))
    place.system.database.run(
        "UPDATE turns SET state = 'parked', error_code = 'worker_lost', error_message = 'It did.', "
        "settled_at = clock_timestamp()"
    )
    if is_other:
        of_tenant(place, "turns")
    (finding,) = found("parked turns")
    words = ["parked", "list", *(["--tenant", "acme & sons"] if is_other else [])]
    return Printed(
        told(finding),
        command,
        has_helped=lambda: turn.turn_id.hex in place.turnmill(*words)[1],
    )


@prints("producer/doctor/work.py", "turnmill conversations list")
def conversations_that_people_answer(place: Place) -> Printed:
    accept(place.system.database, place.system.request("hello"))
    of_tenant(place, "conversations")
    place.system.database.run(
        "UPDATE conversations SET handed_off_at = now(), handed_off_because = 'a test'"
    )
    (finding,) = found("conversations")
    option = ["--tenant", "acme & sons"]
    return Printed(
        told(finding),
        "turnmill conversations list --tenant 'acme & sons'",
        has_helped=lambda: "conv_" in place.turnmill("conversations", "list", *option)[1],
    )


@prints("producer/doctor/work.py", "CONVERSATION{…}")
def a_conversation_that_a_person_answers(place: Place) -> Printed:
    turn = accept(place.system.database, place.system.request("hello"))
    place.system.database.run("DELETE FROM outbox; UPDATE turns SET state = 'cancelled'")
    place.system.database.run(
        "UPDATE conversations SET handed_off_at = now(), handed_off_because = 'a test'"
    )
    (finding,) = found("conversations")
    return Printed(
        told(finding),
        "turnmill conversations resume CONVERSATION",
        fill={"CONVERSATION": f"conv_{turn.conversation_id.hex}"},
        has_helped=lambda: not found("conversations"),
    )


@prints("producer/doctor/work.py", "turnmill deliver; with")
def deliveries_that_nobody_takes(place: Place) -> Printed:
    put_delivery(place, "queued")
    place.system.database.run(
        "INSERT INTO outbox (turn_id, model, lane, due_at, published_at) "
        "SELECT id, 'desk', 'delivery', now() - interval '1 h', now() FROM deliveries"
    )
    (finding,) = found("deliveries")
    configure_desk(place)
    return Printed(told(finding), "turnmill deliver", serves="deliver.consuming")


@prints("producer/doctor/work.py", "turnmill deliver: every")
def deliveries_of_turns_that_have_ended(place: Place) -> Printed:
    turn = accept(place.system.database, place.system.request("hello"))
    place.system.database.run("DELETE FROM outbox; UPDATE turns SET state = 'failed', "
                              "settled_at = now() - interval '1 h'")  # fmt: skip
    put_delivery(place, "pending", turn.turn_id, turn.conversation_id)
    (finding,) = found("deliveries")
    configure_desk(place)
    return Printed(
        told(finding), "turnmill deliver", serves="deliver.consuming",
        has_helped=lambda: not [each for each in found("deliveries") if "pending" in each.detail],
    )  # fmt: skip


@prints("producer/doctor/work.py", "turnmill deliveries retry --failed")
def deliveries_of_another_tenant_that_failed(place: Place) -> Printed:
    put_delivery(place, "failed")
    of_tenant(place, "deliveries")
    (finding,) = found("deliveries")
    return Printed(
        told(finding),
        "turnmill deliveries retry --failed --channel desk --tenant 'acme & sons'",
        has_helped=lambda: not found("deliveries"),
    )


@prints("producer/operations/lanes.py", "turnmill lanes resume {…}")
def a_lane_that_is_paused(place: Place) -> Printed:
    model = place.system.settings.engine.model_name
    lanes.pause(place.system.database, Lane.BATCH, model, by="ada@ops", reason="")
    (finding,) = found("lanes")
    return Printed(
        told(finding),
        f"turnmill lanes resume batch --model {model}",
        has_helped=lambda: not found("lanes"),
    )


def put_delivery(place: Place, state: str, *turn: object) -> None:
    """A delivery of the channel `desk`, of a turn and its conversation if given."""
    turn_id, conversation_id = turn or (None, new_id())
    place.system.database.run(
        "INSERT INTO deliveries (id, tenant_id, conversation_id, turn_id, channel, target, kind, "
        "content, state, failures, error_code, error_message) VALUES (%s, %s, %s, %s, 'desk', "
        "'{}', %s, 'hello', %s, 3, 'http_400', 'It did.')",
        (new_id(), place.system.tenant_id, conversation_id, turn_id,
         "reply" if turn_id else "notice", state),
    )  # fmt: skip
    if turn_id is None:
        place.system.database.run(
            "INSERT INTO conversations (id, tenant_id, bot_id) SELECT %s, tenant_id, id FROM bots "
            "LIMIT 1", (conversation_id,),
        )  # fmt: skip


def configure_desk(place: Place) -> None:
    """A webhook that nobody listens at: deliveries are taken, and tried again."""
    place.monkeypatch.setenv("DESK_SECRET", f"whsec_{'ab' * 16}")
    file = place.folder / "turnmill.toml"
    file.write_text("""
        [channels.desk]
        kind = "webhook"
        bot = "smollm2-135m-instruct"
        secret = { env = "DESK_SECRET" }
        url = "http://127.0.0.1:9/replies"
    """)
    place.monkeypatch.setenv("TURNMILL_CONFIG", str(file))


def synced(place: Place, source: Path) -> str:
    """Bring the collection `shop` up to date, and index it; what is printed."""
    database = place.system.database
    with closing(
        Indexer(database, open_files(database, place.system.settings), lease_s=15.0)
    ) as it:
        it.start()
        return place.turnmill("knowledge", "sync", "shop", str(source))[1]


@prints("producer/doctor/knowledge.py", "turnmill knowledge calibrate {…}{…}")
def a_collection_that_changed_since_it_was_calibrated(place: Place) -> Printed:
    faq = place.folder / "faq.csv"

    def write(count: int) -> None:
        rows = "".join(
            f"Where is box {n} of shelf{n}?,The box{n} stands on the shelf{n} of cellar{n}.\n"
            for n in range(count)
        )
        faq.write_text(f"question,answer\n{rows}")

    write(30)
    assert "is calibrated" in synced(place, faq)
    place.system.database.run("""UPDATE collections SET
        gate = jsonb_set(gate, '{calibrated_at}', '"2020-01-01T00:00:00Z"')""")
    (finding,) = found("knowledge")
    return Printed(
        told(finding),
        "turnmill knowledge calibrate shop",
        has_helped=lambda: not found("knowledge"),
    )


@prints(
    "producer/cli/knowledge/calibrating.py", "turnmill knowledge calibrate {…} --questions FILE{…}"
)
def a_stale_gate_that_people_labelled(place: Place) -> Printed:
    a_collection_that_changed_since_it_was_calibrated(place)
    place.system.database.run(
        "UPDATE collections SET gate = jsonb_set(gate, '{is_labelled}', 'true')"
    )
    asked = place.folder / "asked.csv"
    asked.write_text("question,answered_by\nWhere is the box7 of the shelf7?,faq.csv\n")
    return Printed(
        synced(place, place.folder / "faq.csv"),
        "turnmill knowledge calibrate shop --questions FILE",
        fill={"FILE": str(asked)},
        has_helped=lambda: not found("knowledge"),
    )


@prints("producer/doctor/work.py", "turnmill users reapply")
def a_user_whom_nobody_forgets(place: Place) -> Printed:
    forget_user(place.system.database, place.system.tenant_id, "api:ada")
    place.system.database.run("UPDATE erasures SET at = at - interval '3 hours' RETURNING at")
    (finding,) = found("forgotten users")
    return Printed(
        told(finding),
        "turnmill users reapply",
        has_helped=lambda: not found("forgotten users"),
    )


def held_file(place: Place) -> tuple[File, Callable[[], None]]:
    """A file with a non-empty folder in its place, which no account can unlink; and the repair."""
    settings = place.system.settings
    with open_storage(settings).draft() as draft:
        draft.write(b"a photo")
        file = open_files(place.system.database, settings).save(
            draft, tenant_id=place.system.tenant_id, name="photo.png", purpose=Purpose.MESSAGE
        )
    path = LocalStorage.of(settings).path(file.key)
    path.unlink()
    (path / "held").mkdir(parents=True)

    def repair() -> None:
        (path / "held").rmdir()
        path.rmdir()

    return file, repair


@prints("producer/doctor/work.py", "turnmill db prune")
def a_file_that_retention_cannot_delete(place: Place) -> Printed:
    _, repair = held_file(place)
    database = place.system.database
    database.run("UPDATE files SET expires_at = clock_timestamp() RETURNING id")
    retention = place.system.settings.retention
    prune(database, retention, lambda _: False, storage=open_storage(place.system.settings))
    (finding,) = found("files to delete")
    assert finding.level is Level.WARNING
    repair()
    return Printed(
        told(finding), "turnmill db prune", has_helped=lambda: not found("files to delete")
    )


@prints("producer/doctor/work.py", "turnmill users reapply")
def a_file_of_a_forgotten_user_that_cannot_be_deleted(place: Place) -> Printed:
    file, repair = held_file(place)
    database = place.system.database
    forget_user(database, place.system.tenant_id, "api:ada")
    database.run(
        "INSERT INTO erased_files (tenant_id, file_id, asked_by) "
        "SELECT tenant_id, %s, ARRAY[key_hash] FROM erasures RETURNING file_id",
        (file.file_id,),
    )
    said = place.turnmill("users", "reapply")[1]
    assert "Is a directory" in said and "All else is erased." in said
    (finding,) = found("files to delete")
    assert "of forgotten users" in finding.detail
    repair()

    def has_helped() -> bool:
        (erasure,) = list_erasures(database)
        return not found("files to delete") and erasure.done_at is not None

    return Printed(told(finding), "turnmill users reapply", has_helped=has_helped)


def embedded_shop(place: Place) -> str:
    """A collection with vectors, and the file that it was made of."""
    place.monkeypatch.setitem(EMBEDDERS, "hashed", "tests.contract.embedders.stand_in:Hashed")
    place.monkeypatch.setitem(EMBEDDER_LIBRARIES, "hashed", "zlib")
    faq = place.folder / "faq.csv"
    faq.write_text("question,answer\nWhere are you?,In Bremen.\n")
    synced(place, faq)
    said = place.turnmill("knowledge", "embed", "shop", "--embedder", "hashed")[1]
    assert "Embedded 1 passages" in said
    return str(faq)


@prints("producer/doctor/knowledge.py", "turnmill knowledge embed {…} --embedder {…}{…}")
def passages_without_vectors(place: Place) -> Printed:
    embedded_shop(place)
    place.system.database.run("DELETE FROM passage_vectors")
    (finding,) = found("vectors")
    return Printed(
        told(finding),
        "turnmill knowledge embed shop --embedder hashed",
        has_helped=lambda: not found("vectors"),
    )


@prints("producer/cli/knowledge/embedding.py", "turnmill knowledge embed {…} {…}")
def new_passages_where_the_embedder_is_not_installed(place: Place) -> Printed:
    faq = embedded_shop(place)
    with Path(faq).open("a") as file:
        file.write("Do you sell lamps?,Yes.\n")
    with place.monkeypatch.context() as patch:
        patch.setitem(EMBEDDER_LIBRARIES, "hashed", "no_such_library")
        said = synced(place, Path(faq))
        assert "pip install" in told(*found("vectors"))
    return Printed(
        said,
        "turnmill knowledge embed shop --embedder hashed",
        has_helped=lambda: not found("vectors"),
    )
