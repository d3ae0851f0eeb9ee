"""`turnmill demo`: one command, the real default model, from nothing to a results file."""

import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.cells import cell_len

Eventually = Callable[..., None]

SAMPLE = Path(__file__).parents[2] / "infra" / "samples" / "tickets.jsonl"
INTERRUPTED = 130

#: Turns that are not over before Ctrl-C, and a worker that does not wait for them after it.
SLOW_ECHO = {
    "TURNMILL_ENGINE__NAME": "echo",
    "TURNMILL_ENGINE__ECHO_TOKEN_S": "1",
    "TURNMILL_WORKER__DRAIN_S": "0.5",
}


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_each_row_has_a_reply_or_a_reason(backlog: Path, results: Path) -> None:
    answers = read_rows(results)
    assert [answer["id"] for answer in answers] == [row["id"] for row in read_rows(backlog)]
    for answer in answers:
        match answer["state"]:
            case "completed":
                # What the bot says by itself costs no token.
                assert answer["completion_tokens"] > 0 or answer["reply"]
                assert answer["error"] is None
            case "failed":
                assert answer["error"]["code"]
            case state:
                raise AssertionError(f"{answer['id']} is {state}")
    assert any(answer["reply"] for answer in answers)


def assert_replies_show_their_documents_or_that_there_are_none(
    said: str, answers: list[dict[str, Any]]
) -> None:
    assert re.search(
        r"│ parcel-late +│ documents +│ delivery.md: Delivery › My parcel is late", said
    )
    assert re.search(r"│ [a-z0-9-]+ +│ the bot +│ I am not sure: I found nothing", said)
    counted = re.search(r"(\d+) of 48 were answered from documents, (\d+) asked back, (\d+)", said)
    assert counted is not None
    answered, asked, unsure = map(int, counted.groups())
    assert answered > 36
    assert asked > 0
    assert answered + asked + unsure == 48
    own = [each for each in answers if each["completion_tokens"] == 0]
    assert len(own) == asked + unsure


def results_named_in(output: str) -> Path:
    match = re.search(r"^results\s+(\S+)", output, re.MULTILINE)
    assert match is not None, output
    return Path(match.group(1))


def run_on_screen(terminal: Any, *arguments: str) -> tuple[int, str]:
    """Run a command on a terminal that shows what a person would see."""
    screen, end = pty.openpty()
    try:
        process = terminal.start(*arguments, output=end)
    finally:
        os.close(end)
    shown = b""
    with os.fdopen(screen, "rb", buffering=0) as reader:
        while True:
            try:
                piece = reader.read(65536)
            except OSError:  # How Linux says that nobody writes any more.
                break
            if not piece:
                break
            shown += piece
    return process.wait(timeout=30), shown.decode()


def test_the_demo_answers_all_of_its_tickets_and_leaves_nothing_running(
    make_terminal: Callable[..., Any], tmp_path: Path
) -> None:
    terminal = make_terminal()
    demo = terminal.run("demo", "--max-tokens", "3", timeout_s=360)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    results = results_named_in(demo.stdout)
    assert results.is_relative_to(terminal.folder)
    assert len(read_rows(results)) == 48
    assert_each_row_has_a_reply_or_a_reason(SAMPLE, results)
    assert "0/48 done" in demo.stdout
    assert "48/48 done" in demo.stdout
    assert re.search(r"│ parcel-late +│ Hi, my parcel was due", demo.stdout)
    assert re.search(r"│ address-zh +│ 地址填错了", demo.stdout)
    assert (
        len({cell_len(line) for line in demo.stdout.splitlines() if line[:1] in list("┏┡│└")}) == 1
    )
    assert "turns      48 of 48 completed, 0 failed" in demo.stdout
    assert "attempts   48" in demo.stdout
    assert re.search(r"p50 [\d.]+ s, p95 [\d.]+ s from acceptance to reply", demo.stdout)
    assert re.search(r"[\d,]+ completion, [\d,.]+ tokens/s", demo.stdout)
    assert_replies_show_their_documents_or_that_there_are_none(demo.stdout, read_rows(results))
    assert terminal.processes() == []
    assert not (terminal.folder / "stack.json").exists()

    own = tmp_path / "own.jsonl"
    own.write_text("".join(f'{{"prompt": "Say {n}."}}\n' for n in range(1, 6)))
    # What a model says to them, the first run has shown.
    terminal.environment["TURNMILL_ENGINE__NAME"] = "echo"
    status, shown = run_on_screen(terminal, "demo", str(own), "--max-tokens", "4")
    assert status == 0, shown
    assert "Starting" in shown
    assert "5/5 done" in shown
    assert "5 of 5 completed" in shown
    assert terminal.processes() == []
    assert len(list((terminal.folder / "results").iterdir())) == 2


def test_ctrl_c_ends_the_demo_and_all_of_its_processes(
    make_terminal: Callable[..., Any], eventually: Eventually
) -> None:
    terminal = make_terminal(**SLOW_ECHO)
    log = terminal.folder / "demo.log"
    with log.open("wb") as output:
        demo: subprocess.Popen[bytes] = terminal.start("demo", output=output)
    eventually(lambda: b"0/48 done" in log.read_bytes() or demo.poll() is not None, 60)
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(timeout=60) == INTERRUPTED, log.read_text()
    said = log.read_text()
    assert "nothing is lost" in said
    assert "turnmill up" in said
    assert "Traceback" not in said
    assert terminal.processes() == []


def test_the_slack_demo_shows_a_thread_that_is_answered_collected_and_handed_over(
    make_terminal: Callable[..., Any],
) -> None:
    terminal = make_terminal(TURNMILL_ENGINE__NAME="echo")
    demo = terminal.run("demo", "--slack", timeout_s=120)
    assert demo.returncode == 0, demo.stdout + demo.stderr
    said = [
        line for line in demo.stdout.splitlines() if re.match(r"(Alice|Ben|Parcel Post)\b", line)
    ]
    # What was said, with the answers of an engine that echoes the last message.
    assert [line.partition(":")[0].split(" (")[0] for line in said] == [
        *("Alice", "Parcel Post"),
        *("Alice", "Alice", "Alice", "Parcel Post"),
        *("Alice", "Parcel Post", "Ben", "Alice"),
        *("Parcel Post", "Alice", "Parcel Post"),
    ]
    for text in ("One more thing", "it is a birthday present", "so can I change the address?"):
        assert demo.stdout.count(text) == 2
    assert said[7].endswith("They will answer here.")
