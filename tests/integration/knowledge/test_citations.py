"""A reply cites what its turn was shown: in streams, in the API, and in what is kept of it."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from typer.testing import CliRunner

from tests.conversing import serving
from tests.integration.knowledge.conftest import Library
from turnmill.producer.accept import accept
from turnmill.producer.batches.backlog import read_backlog
from turnmill.producer.batches.results import results, write_results
from turnmill.producer.batches.submission import submit
from turnmill.producer.cli.channels.conversations import app as conversation_commands
from turnmill.producer.cli.turns.listing import app as turn_commands
from turnmill.producer.tenants import create_key, save_bot
from turnmill.producer.turns import read_turn
from turnmill.schemas.channels.policies import Policies
from turnmill.schemas.content import Document
from turnmill.schemas.errors import EngineUnavailable
from turnmill.schemas.ids import Prefix, show_id
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.tenants import Scope
from turnmill.schemas.turns import GenerationParams
from turnmill.workers.engines.base import Chunk, Prompt
from turnmill.workers.engines.echo import EchoEngine
from turnmill.workers.testing import InlineWorker
from turnmill.workers.turn.draft import CITE

RETURNS = "# Returns\n\nA kettle that leaks may be sent back within 30 days."
SHIPPING = "# Shipping\n\nThe parcel with your kettle leaves on weekdays."
QUESTION = "May a kettle that leaks be sent back, and when does the parcel leave?"


class Scripted(EchoEngine):
    """Says what `says` has, character by character, after what an attempt said before."""

    def __init__(self) -> None:
        super().__init__(EngineSettings())
        self.prompts: list[Prompt] = []
        self.says = ""
        #: Called once, after so many characters.
        self.breaks: tuple[int, Callable[[], None]] | None = None

    def generate(self, prompt: Prompt, params: GenerationParams, abort: Any) -> Iterator[Chunk]:
        self.prompts.append(prompt)
        assert self.says.startswith(prompt.prefix)
        for at in range(len(prompt.prefix), len(self.says)):
            if self.breaks and self.breaks[0] == at:
                breaks, self.breaks = self.breaks[1], None
                breaks()
            yield Chunk(self.says[at], token_count=1)
        yield Chunk("", finish_reason="stop", prompt_tokens=1)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    engine = Scripted()
    monkeypatch.setattr("turnmill.workers.consumer.process.create_engine", lambda _: engine)
    return engine


@pytest.fixture
def system(make_system: Callable[..., Any], database_url: str, engine: Scripted) -> Iterator[Any]:
    system = make_system(database_url, "amqp://nobody", rescue_every_s=60.0, flush_s=0.01)
    with InlineWorker(system.settings):
        yield system


def save(system: Any, **policies: Any) -> None:
    bot = system.settings.engine.model_name
    chosen = Policies(knowledge="shop", **policies)
    save_bot(system.database, system.tenant_id, bot, bot, "", GenerationParams(), policies=chosen)


@pytest.fixture
def shop(system: Any, library: Library) -> Library:
    save(system)
    library.write("returns.md", RETURNS)
    library.write("shipping.md", SHIPPING)
    library.sync()
    system.database.run(
        "UPDATE documents SET url = 'https://help.example/returns' "
        "WHERE uri = 'returns.md' RETURNING id"
    )
    return library


def ask(system: Any, text: str = QUESTION, **fields: Any) -> Any:
    accepted = accept(system.database, system.request(text, **fields))
    system.wait_until_settled()
    return read_turn(system.database, system.tenant_id, accepted.turn_id)


def test_a_reply_keeps_the_markers_of_what_was_shown_and_no_others(
    system: Any, shop: Library, engine: Scripted
) -> None:
    engine.says = "Within 30 days [1], they leave on weekdays【2】; ask us [3][7]. 👩‍🚀 [2]"
    reply = ask(system).reply
    assert reply.content == "Within 30 days [1], they leave on weekdays【2】; ask us. 👩‍🚀 [2]"
    marks = [reply.content[each.start : each.end] for each in reply.citations]
    assert marks == ["[1]", "【2】", "[2]"]
    assert [each.number for each in reply.citations] == [1, 2, 2]
    assert {each.uri: each.cited for each in reply.sources} == {
        "returns.md": True,
        "shipping.md": True,
    }
    assert CITE in engine.prompts[0].messages[-1].text


def test_where_nothing_was_found_a_reply_cites_nothing_and_is_left_as_it_is(
    system: Any, shop: Library, engine: Scripted
) -> None:
    engine.says = "Germany [1]."
    reply = ask(system, "Who won in 1954?").reply
    assert (reply.content, reply.citations, reply.sources) == ("Germany [1].", (), ())


def test_what_had_no_room_in_the_prompt_is_not_shown_and_cannot_be_cited(
    system: Any, shop: Library, engine: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = engine.count_tokens
    monkeypatch.setattr(
        engine,
        "count_tokens",
        lambda prompt: 10**6 if "[2] " in prompt.messages[-1].text else room(prompt),
    )
    engine.says = "One [1], two [2]."
    turn = ask(system)
    assert turn.reply.content == "One [1], two."
    assert [each.index for each in turn.reply.sources] == [1]
    [row] = system.database.run("SELECT jsonb_array_length(sources) AS n, shown FROM turn_sources")
    assert (row.n, row.shown) == (2, 1)


def test_an_attempt_that_continues_a_reply_cites_what_the_first_one_was_shown(
    system: Any, shop: Library, engine: Scripted
) -> None:
    """The documents change meanwhile, and the marker that was held is said again."""

    def change_and_fail() -> None:
        shop.write("returns.md", RETURNS.replace("30 days", "60 days"))
        shop.sync()
        (shop.folder / "shipping.md").unlink()
        shop.sync()
        raise EngineUnavailable("away")

    engine.says = "Days [1], 三天 [9] weekdays [2]."
    engine.breaks = (engine.says.index("9"), change_and_fail)
    turn = ask(system)
    assert turn.attempt == 2
    assert engine.prompts[1].prefix == "Days [1], 三天"
    assert engine.prompts[1].messages == engine.prompts[0].messages
    assert turn.reply.content == "Days [1], 三天 weekdays [2]."
    assert [each.number for each in turn.reply.citations] == [1, 2]
    said = {each.uri: each.snippet for each in turn.reply.sources}
    assert "30 days" in said["returns.md"]
    engine.says = "Days [1], weekdays [2]."
    later = ask(system).reply
    assert later.content == "Days [1], weekdays."
    assert ["60 days" in each.snippet for each in later.sources] == [True]
    assert later.sources[0].version == 2


def test_what_a_reply_cites_is_of_one_version_while_documents_change(
    system: Any, shop: Library, engine: Scripted
) -> None:
    """Each version says its own number."""
    engine.says = "So it is [1]."
    turns = []
    for number in range(2, 12):
        turns += [accept(system.database, system.request(QUESTION)) for _ in range(5)]
        shop.write("returns.md", RETURNS.replace("30 days", f"{number} days in version {number}"))
        shop.sync()
    system.wait_until_settled()
    replies = [read_turn(system.database, system.tenant_id, turn.turn_id).reply for turn in turns]
    shown = [each for reply in replies for each in reply.sources if each.uri == "returns.md"]
    assert len(shown) == len(turns)
    for each in shown:
        assert f"in version {each.version}" in each.snippet or each.version == 1
    assert len({each.version for each in shown}) > 1
    assert all(reply.citations for reply in replies)


def test_numbers_of_the_users_own_text_and_of_passages_that_came_with_the_turn_stay(
    system: Any, shop: Library, engine: Scripted
) -> None:
    engine.says = "Yours [1] and [17], ours [2], nobody's [8]."
    mine = GenerationParams(documents=(Document(title="Mine", text="A kettle of mine leaks."),))
    reply = ask(system, f"{QUESTION} As [17] says.", params=mine).reply
    assert reply.content == "Yours [1] and [17], ours [2], nobody's."
    assert [each.number for each in reply.citations] == [2]
    assert reply.sources[0].index == 2


def test_a_reply_with_a_format_is_untouched(system: Any, shop: Library, engine: Scripted) -> None:
    engine.says = '{"list": [9]}'
    params = GenerationParams.model_validate({"response_format": {"type": "json_object"}})
    reply = ask(system, params=params).reply
    assert reply.content == engine.says
    assert CITE not in engine.prompts[0].messages[-1].text
    assert reply.citations == ()
    assert len(reply.sources) == 2


def test_a_bot_that_does_not_cite_is_not_told_to(
    system: Any, shop: Library, engine: Scripted
) -> None:
    save(system, cites=False)
    engine.says = "See [1] and [9]."
    reply = ask(system).reply
    assert (reply.content, reply.citations) == (engine.says, ())
    assert CITE not in engine.prompts[0].messages[-1].text


def test_later_prompts_repeat_a_reply_without_its_markers(
    system: Any, shop: Library, engine: Scripted
) -> None:
    """There the same number is another passage, and a model repeats what it reads."""
    engine.says = "Within 30 days [1], on weekdays [2]."
    first = ask(system)
    ask(system, "What did you say?", conversation_id=first.conversation_id)
    said = [each.text for each in engine.prompts[-1].messages]
    assert "Within 30 days, on weekdays." in said
    engine.says = "As [1] says."
    save(system, cites=False)
    other = ask(system, "A kettle that leaks?")
    ask(system, "What did you say?", conversation_id=other.conversation_id)
    assert "As [1] says." in [each.text for each in engine.prompts[-1].messages]


def test_commands_name_the_sources_of_a_reply(
    system: Any, shop: Library, engine: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.says = "Within 30 days [1]."
    turn = ask(system)
    for name, value in {**system.variables, "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    runner = CliRunner()
    shown = runner.invoke(turn_commands, ["show", show_id(Prefix.TURN, turn.turn_id)]).output
    assert "cited         [1] Returns (https://help.example/returns), version 1" in shown
    assert "shown         [2] Shipping (shipping.md), version 1" in shown
    conversation = show_id(Prefix.CONVERSATION, turn.conversation_id)
    shown = runner.invoke(conversation_commands, ["show", conversation]).output
    assert "[1] Returns (https://help.example/returns)" in shown
    assert "[2]" not in shown


def test_results_of_a_backlog_have_a_column_of_sources(
    system: Any, shop: Library, engine: Scripted, tmp_path: Path
) -> None:
    engine.says = "On weekdays [2], 30 days [1]."
    path = tmp_path / "tickets.csv"
    path.write_text(f"prompt\n{QUESTION.replace(',', '')}\nWho won in 1954?\n")
    bot = system.settings.engine.model_name
    batch = submit(system.database, system.tenant_id, bot, read_backlog(path))
    system.wait_until_settled()
    found = list(results(system.database, system.tenant_id, batch.batch_id))
    assert [each.sources for each in found] == [
        "[1] Returns (https://help.example/returns); [2] Shipping (shipping.md)",
        None,
    ]
    for name in ("r.parquet", "r.jsonl", "r.csv", "r.xlsx"):
        assert write_results(tmp_path / name, found) == 2
    assert "[1] Returns (https" in (tmp_path / "r.csv").read_text()


@pytest.fixture
def client(system: Any, eventually: Callable[..., None]) -> Iterator[openai.OpenAI]:
    key = create_key(system.database, system.tenant_id, "test", Scope)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        serving(system.settings, listener, eventually),
        openai.OpenAI(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", api_key=key, max_retries=0
        ) as client,
    ):
        yield client


def test_openais_client_reads_annotations_and_sources(
    system: Any, shop: Library, engine: Scripted, client: openai.OpenAI
) -> None:
    engine.says = "三天🚀 [1]，平日 [2]。"
    question: Any = [{"role": "user", "content": QUESTION}]
    whole = client.chat.completions.create(model=system.settings.engine.model_name,
                                           messages=question)  # fmt: skip
    message = whole.choices[0].message
    assert message.content == engine.says
    [annotation] = message.annotations or []
    citation = annotation.url_citation
    assert annotation.type == "url_citation"
    assert engine.says[citation.start_index : citation.end_index] == "[1]"
    assert (citation.url, citation.title) == ("https://help.example/returns", "Returns")
    sources = whole.turnmill["sources"]  # type: ignore[attr-defined]
    assert [(each["index"], each["uri"], each["cited"]) for each in sources] == [
        (1, "returns.md", True),
        (2, "shipping.md", True),
    ]
    assert "30 days" in sources[0]["snippet"]


def test_a_stream_brings_its_annotations_with_its_last_chunk_and_never_a_marker_it_takes_back(
    system: Any, shop: Library, engine: Scripted, client: openai.OpenAI
) -> None:
    engine.says = "Within 30 days [1]. " * 20 + "Or [9] not [3, 2]."
    question: Any = [{"role": "user", "content": QUESTION}]
    model = system.settings.engine.model_name
    chunks = list(client.chat.completions.create(model=model, messages=question, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "Within 30 days [1]. " * 20 + "Or not [2]."
    assert not any((getattr(chunk, "turnmill", None) or {}).get("restarted") for chunk in chunks)
    last = chunks[-1]
    assert last.choices[0].finish_reason == "stop"
    annotations = last.choices[0].delta.annotations  # type: ignore[attr-defined]
    assert len(annotations) == 20
    for each in annotations:
        place = each["url_citation"]
        assert text[place["start_index"] : place["end_index"]] == "[1]"
    assert [each["uri"] for each in last.turnmill["sources"]] == ["returns.md", "shipping.md"]  # type: ignore[attr-defined]
