"""`turnmill up`, and all that is done with a stack that is up, on the real default model.

The dialogues are those of the chatterbot corpus, English and Chinese. One stack serves the
module; the last test stops it with Ctrl-C and starts it again.
"""

import csv
import json
import os
import random
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

Eventually = Callable[..., None]

MODEL = "smollm2-135m-instruct"
CONVERSATIONS, MAX_TURNS = 24, 4

#: At temperature 0 the model goes on for more than 1500 tokens.
LONG_STORY = "Write a very long story about a lighthouse."

TURN = re.compile(r"turn_[0-9a-f]{32}")
CONVERSATION = re.compile(r"conv_[0-9a-f]{32}")


class UpStack:
    """A `turnmill up` in a terminal of its own, and what it says about itself."""

    def __init__(self, terminal: Any, eventually: Eventually) -> None:
        self.terminal = terminal
        self.api_key = ""
        self._eventually = eventually
        self._starts = 0
        self.start()

    def start(self) -> None:
        self._starts += 1
        log = self.terminal.folder / f"up-{self._starts}.log"
        with log.open("wb") as output:
            self._process: subprocess.Popen[bytes] = self.terminal.start("up", output=output)
        self._eventually(
            lambda: b"Ctrl-C stops everything" in log.read_bytes() or self.has_ended, 120
        )
        assert not self.has_ended, log.read_text()
        said = log.read_text()
        self.api_url = _after("API", said)
        self.flower_url = _after("Flower", said)
        self.flower_password = said.partition("password ")[2].partition(")")[0]
        if "API key" in said:
            self.api_key = _after("API key", said)

    def press_ctrl_c(self) -> int:
        """The exit status; like a terminal, tells the whole process group."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(timeout=20)

    def kill(self) -> None:
        """Everything of it at once, PostgreSQL too."""
        self.terminal.kill()
        self._process.wait()

    def turnmill(self, *arguments: str, stdin: str = "", status: int = 0) -> str:
        """What a command prints; it must end with this exit status."""
        done = self.terminal.run(*arguments, stdin=stdin)
        assert done.returncode == status, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return str(done.stdout)

    def get(self, path: str, key: str | None = None) -> httpx.Response:
        root = self.api_url.removesuffix("/v1")
        return httpx.get(root + path, headers={"Authorization": f"Bearer {key or self.api_key}"})

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None


def _after(label: str, said: str) -> str:
    match = re.search(rf"^  {label} +(\S+)", said, re.MULTILINE)
    assert match is not None, said
    return match.group(1)


@pytest.fixture(scope="module")
def stack(make_terminal: Callable[..., Any], eventually: Eventually) -> Iterator[UpStack]:
    stack = UpStack(make_terminal(), eventually)
    stack.turnmill("bots", "save", "brief", "--max-tokens", "5", "--temperature", "0")
    yield stack
    if not stack.has_ended:
        stack.press_ctrl_c()


def corpus_conversations() -> Iterator[list[str]]:
    """The user's lines of the corpus' longest conversations: every other line is the user's."""
    corpus = pytest.importorskip("chatterbot_corpus")
    data = Path(corpus.__file__).parent / "data"
    for language in ("english", "chinese"):
        talks = [
            [str(line) for line in talk[::2]][:MAX_TURNS]
            for path in sorted((data / language).glob("*.yml"))
            for talk in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
        ]
        yield from sorted(talks, key=len, reverse=True)[: CONVERSATIONS // 2]


def corpus_rows() -> list[dict[str, Any]]:
    """One row per line of a user, the conversations scattered over the file."""
    rows = [
        {"id": f"{number}-{turn}", "conversation": str(number), "turn": turn, "prompt": line}
        for number, lines in enumerate(corpus_conversations())
        for turn, line in enumerate(lines)
        if line.strip()
    ]
    random.Random(1).shuffle(rows)
    return rows


def test_the_corpus_is_answered_without_a_gap_and_in_order(stack: UpStack, tmp_path: Path) -> None:
    rows, backlog = corpus_rows(), tmp_path / "corpus.jsonl"
    assert len({row["conversation"] for row in rows}) == CONVERSATIONS
    assert any("你" in row["prompt"] for row in rows)
    backlog.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    said = stack.turnmill("batch", "run", str(backlog), "--max-tokens", "4")
    assert f"{len(rows)}/{len(rows)} done" in said

    results = tmp_path / "corpus-results.jsonl"
    answers = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    assert [answer["id"] for answer in answers] == [row["id"] for row in rows]
    for row, answer in zip(rows, answers, strict=True):
        assert answer["state"] == "completed" or answer["error"]["code"], answer
        earlier = [
            other
            for other in rows
            if other["conversation"] == row["conversation"] and other["turn"] < row["turn"]
        ]
        assert answer["seq"] == len(earlier) + 1
    for conversation in {answer["conversation_id"] for answer in answers}:
        turns = stack.get(f"/conversations/{conversation}").json()["turns"]
        assert [turn["seq"] for turn in turns] == list(range(1, len(turns) + 1))
        assert all(first["settled_at"] <= then["started_at"] for first, then in pairwise(turns))

    batch = re.search(r"batch_[0-9a-f]{32}", said)
    assert batch is not None
    assert batch.group() in stack.turnmill("batch", "status")
    assert f"{len(rows)} of {len(rows)} completed" in stack.turnmill(
        "batch", "status", batch.group()
    )
    stack.turnmill(
        "batch", "results", batch.group()[:20], "--raw", "-o", str(tmp_path / "again.csv")
    )
    with (tmp_path / "again.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    assert [cell["id"] for cell in cells] == [row["id"] for row in rows]
    assert {cell["turn_id"] for cell in cells} == {answer["turn_id"] for answer in answers}
    assert [cell["reply"] for cell in cells] == [answer["reply"] or "" for answer in answers]

    shown = stack.turnmill("turns", "show", answers[0]["turn_id"])
    assert rows[0]["prompt"].split()[0] in shown
    assert "completed in lane batch, attempt 1" in shown


def test_one_question_is_answered_on_the_terminal(stack: UpStack) -> None:
    assert stack.turnmill("ask", "Where is my parcel?", "--max-tokens", "5").strip()


def test_a_chat_can_be_resumed_where_it_ended(stack: UpStack) -> None:
    said = stack.turnmill("chat", "--bot", "brief", stdin="My name is Ada.\nWho am I?\n")
    (conversation,) = set(CONVERSATION.findall(said))
    assert f"turnmill chat --conversation {conversation}" in said

    resumed = stack.turnmill("chat", "--conversation", conversation, stdin="And now?\n")
    turns = stack.get(f"/conversations/{conversation}").json()["turns"]
    assert [turn["messages"][-1]["content"] for turn in turns] == [
        "My name is Ada.",
        "Who am I?",
        "And now?",
    ]
    assert {turn["bot"] for turn in turns} == {"brief"}
    history = resumed[: resumed.index("you: Who am I?")]
    assert history.startswith("you: My name is Ada.\n")
    assert turns[0]["reply"]["content"].strip() in history
    assert turns[2]["reply"]["usage"]["prompt_tokens"] > turns[0]["reply"]["usage"]["prompt_tokens"]


def test_an_abandoned_question_goes_on_and_can_be_cancelled(
    stack: UpStack, eventually: Eventually
) -> None:
    stack.turnmill("bots", "save", "patient", "--temperature", "0")
    log = stack.terminal.folder / "ask.log"
    with log.open("wb") as output:
        ask = stack.terminal.start(
            "ask", LONG_STORY, "--bot", "patient", "--max-tokens", "3000", output=output
        )
    eventually(lambda: log.read_bytes().strip() or ask.poll() is not None, 30)
    ask.send_signal(signal.SIGINT)
    assert ask.wait(timeout=10) == 130
    found = TURN.search(log.read_text())
    assert found is not None, log.read_text()
    assert "running in lane interactive" in stack.turnmill("turns", "show", found.group())
    assert "Cancelled." in stack.turnmill("turns", "cancel", found.group())
    assert "cancelled in lane" in stack.turnmill("turns", "show", found.group())
    assert "already ended" in stack.turnmill("turns", "cancel", found.group())


def test_a_key_opens_the_api_until_it_is_revoked(stack: UpStack, eventually: Eventually) -> None:
    secret = stack.turnmill("keys", "create", "slack-bot").strip()
    assert stack.get("/v1/models", secret).status_code == 200
    listed = stack.turnmill("keys", "list")
    assert secret not in listed
    (line,) = [line for line in listed.splitlines() if "slack-bot" in line]
    assert secret[:9] in line
    assert stack.turnmill("keys", "revoke", line.split()[0]).strip() == "Revoked."
    eventually(lambda: stack.get("/v1/models", secret).status_code == 401, 10, 0.2)
    assert stack.get("/v1/models").status_code == 200


def test_a_saved_bot_is_a_model_of_the_api(stack: UpStack) -> None:
    stack.turnmill("bots", "save", "support", "--instructions", "You answer for ACME Parcels.")
    listed = stack.turnmill("bots", "list")
    assert "support" in listed
    assert "You answer for ACME Parcels." in listed
    names = [model["id"] for model in stack.get("/v1/models").json()["data"]]
    assert {MODEL, "support"} <= set(names)


def test_the_official_client_gets_whole_and_streamed_replies(stack: UpStack) -> None:
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
    with openai.OpenAI(base_url=stack.api_url, api_key=stack.api_key) as client:
        whole = client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=8, temperature=0
        )
        stream = client.chat.completions.create(
            model=MODEL, messages=messages, max_tokens=8, temperature=0, stream=True
        )
        with stream:
            pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        with pytest.raises(openai.NotFoundError, match="no bot or model"):
            client.chat.completions.create(model="gpt-5", messages=messages)
    assert whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 8
    assert "".join(pieces) == whole.choices[0].message.content
    with (
        openai.OpenAI(base_url=stack.api_url, api_key="tm-wrong") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_flower_opens_with_the_printed_password_only(stack: UpStack) -> None:
    for path in ("/", "/metrics", "/api/workers"):
        assert httpx.get(stack.flower_url + path).status_code == 401
        wrong = httpx.get(stack.flower_url + path, auth=("turnmill", "wrong"))
        assert wrong.status_code == 401
        login = ("turnmill", stack.flower_password)
        right = httpx.get(stack.flower_url + path, auth=login, follow_redirects=True, timeout=10)
        assert right.status_code == 200, path


def test_the_doctor_finds_the_stack_well(stack: UpStack) -> None:
    said = stack.turnmill("doctor")
    assert "PostgreSQL" in said
    assert "broken" not in said


def test_ctrl_c_stops_all_and_the_next_start_still_has_the_turns(stack: UpStack) -> None:
    said = stack.turnmill("chat", "--bot", "brief", stdin="Remember the lighthouse.\n")
    (conversation,) = set(CONVERSATION.findall(said))
    before = stack.get(f"/conversations/{conversation}").json()
    assert stack.terminal.processes()
    assert stack.press_ctrl_c() == 130
    assert stack.terminal.processes() == []
    assert not (stack.terminal.folder / "stack.json").exists()

    stack.start()
    assert stack.get(f"/conversations/{conversation}").json() == before
    resumed = stack.turnmill("chat", "--conversation", conversation, stdin="What was it?\n")
    assert "you: Remember the lighthouse." in resumed
    assert len(stack.get(f"/conversations/{conversation}").json()["turns"]) == 2
