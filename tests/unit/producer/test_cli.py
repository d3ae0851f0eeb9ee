"""The command line by itself: its help, its version, and its errors before anything runs."""

import os
import pty
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from turnmill.producer.cli.app import app, main
from turnmill.producer.cli.commands import RENAMED
from turnmill.producer.cli.views.console import PIPED_WIDTH, make_console
from turnmill.schemas.errors import SettingsError

#: Run `turnmill` with these words: exit status, standard output, standard error.
Turnmill = Callable[..., tuple[int, str, str]]

USAGE, UNAVAILABLE = 64, 69

#: What `--help` has no business loading.
HEAVY = {"celery", "fastapi", "flower", "openvino_genai", "torch", "transformers", "uvicorn"}


def commands(command: Any = None, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command and every group of commands, `turnmill` itself included."""
    command = command or get_command(app)
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, *path, name)


def find(path: tuple[str, ...]) -> Any:
    command: Any = get_command(app)
    for name in path:
        command = command.commands[name]
    return command


def parameters(path: tuple[str, ...]) -> list[Any] | None:
    """A command's arguments and options; None of a group."""
    command = find(path)
    return None if hasattr(command, "commands") else command.params


@pytest.fixture
def turnmill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Turnmill:
    """On a machine where nothing is configured, and nothing listens at the database's address."""
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    monkeypatch.setenv("TURNMILL_DATABASE__URL", "postgresql://turnmill@127.0.0.1:1/turnmill")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["turnmill", *words])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    assert "Usage:" in shown.output
    if parameters(path) is not None:
        assert f"turnmill {' '.join(path)}" in shown.output.partition("Example")[2]


def test_every_option_is_explained_and_yes_has_one_letter() -> None:
    options = [(" ".join(path), each) for path in commands() for each in parameters(path) or []]
    assert [(path, each.name) for path, each in options if not each.help] == []
    # `--yes/--no` is an answer; `--yes` alone means: do not ask.
    asking = [(path, each) for path, each in options if each.opts and "--yes" in each.opts]
    assert asking
    assert [
        path for path, each in asking if "-y" not in each.opts and not each.secondary_opts
    ] == []


#: Today's spelling of what older releases called otherwise, and the old one.
OLD_AND_NEW = [
    (("turns", "list", "--error-code", "worker_lost"), ("turns", "list", "--error=worker_lost")),
    (("turns", "show", "turn_1"), ("turn", "show", "turn_1")),
    (("evaluate", "replies", "x", "--output", "y"), ("evaluate", "replies", "x", "--out", "y")),
    (("chaos", "--output", "y", "--scenario", "x"), ("chaos", "--out", "y", "--scenario", "x")),
    (
        ("conversations", "hand-off", "conv_1", "--reason", "x"),
        ("conversations", "hand-off", "conv_1", "--because", "x"),
    ),
]


@pytest.mark.parametrize(("new", "old"), OLD_AND_NEW)
def test_a_name_of_before_means_the_same(
    turnmill: Turnmill, new: tuple[str, ...], old: tuple[str, ...]
) -> None:
    """None is answered without a database or a file: that is how far the words were understood."""
    said = turnmill(*new)
    assert "No such" not in said[2]
    assert turnmill(*old) == said


def test_no_command_has_a_name_of_before() -> None:
    names = {path[-1] for path in commands() if path}
    for path in commands():
        opts = [each for param in parameters(path) or [] for each in param.opts]
        names |= {each.removeprefix("--") for each in opts if each.startswith("--")}
    assert names >= set(RENAMED.values())
    assert not names & RENAMED.keys()


def test_no_help_text_breaks_lines_of_its_own() -> None:
    """On 80 columns, lines that a docstring breaks end anywhere."""
    broken = [path for path in commands() if re.search(r"[^\n]\n[^\n]", find(path).help or "")]
    assert broken == []


#: What `--version` has no business loading: it answers in a tenth of a second of CPU.
SLOW = HEAVY | {"psycopg", "pydantic", "sqlalchemy", "structlog"}


@pytest.mark.parametrize(
    ("option", "unneeded"),
    [("--help", HEAVY), ("--version", SLOW)],
    ids=["help", "version"],
)
def test_an_answer_about_itself_loads_no_more_than_it_needs(
    option: str, unneeded: set[str]
) -> None:
    program = (
        "import sys; from turnmill.producer.cli.app import app\n"
        f"try: app(['{option}'])\n"
        "except SystemExit: print('LOADED', *(name for name in sys.modules if '.' not in name))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    shown, _, loaded = done.stdout.partition("LOADED")
    assert "turnmill" in shown, done.stderr
    assert not unneeded & set(loaded.split())


@pytest.mark.parametrize(
    "words",
    ["--help", "--version", "doctor", "bots list", "batch list", "batch status", "keys list",
     "tenants list", "models list", "parked list", "conversations list", "db size", "turns show x"],
)  # fmt: skip
def test_a_command_that_only_reads_makes_no_data_folder(
    turnmill: Turnmill, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path / "made" / "data"))
    turnmill(*words.split())
    assert list(tmp_path.iterdir()) == []


def test_the_installed_command_shows_its_version() -> None:
    command = Path(sys.executable).with_name("turnmill")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert done.stdout.startswith("turnmill ")
    assert done.stdout.strip()[-1].isdigit()


def test_a_misspelt_variable_is_refused_and_the_nearest_named(
    turnmill: Turnmill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_BROKR__URL", "redis://:secret@127.0.0.1:6379/0")
    status, _, said = turnmill("keys", "list")
    assert status == USAGE
    assert "TURNMILL_BROKR__URL is not a setting. Did you mean TURNMILL_BROKER__URL?" in said
    assert "secret" not in said


def test_a_value_out_of_bounds_is_refused_without_being_shown(
    turnmill: Turnmill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_WORKER__CONCURRENCY", "4711000")
    status, _, said = turnmill("relay")
    assert status == USAGE
    assert "TURNMILL_WORKER__CONCURRENCY" in said
    assert "4711000" not in said


def test_printing_to_a_terminal_that_was_closed_is_its_end() -> None:
    keyboard, terminal = pty.openpty()
    os.close(keyboard)
    command = [str(Path(sys.executable).with_name("turnmill")), "--version"]
    shown = subprocess.run(command, stdout=terminal, stderr=subprocess.PIPE, check=False)
    os.close(terminal)
    assert (shown.returncode, shown.stderr) == (129, b"")


@pytest.mark.parametrize(
    "words", [("ask", "Hello?"), ("chat",), ("keys", "list"), ("batch", "status")], ids=" ".join
)
def test_without_a_database_it_says_what_to_do(
    turnmill: Turnmill, tmp_path: Path, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TURNMILL_DATABASE__URL")
    status, out, said = turnmill(*words)
    assert status == UNAVAILABLE
    assert out == ""
    assert "database_unavailable" in said
    assert f"No embedded stack runs from {tmp_path}" in said
    assert "turnmill up" in said
    assert "TURNMILL_DATABASE__URL" in said


def test_an_api_whose_port_is_taken_says_so_and_which_setting_counts(turnmill: Turnmill) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = [str(Path(sys.executable).with_name("turnmill")), "api"]
        environment = {**os.environ, "TURNMILL_API__PORT": str(port)}
        ended = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
    assert ended.returncode == 64
    assert f"cannot listen on 127.0.0.1, port {port}" in ended.stderr
    assert "TURNMILL_API__PORT" in ended.stderr


def test_a_configured_database_that_is_away_is_not_to_be_replaced(turnmill: Turnmill) -> None:
    """At three in the morning nobody wants to be told to start another PostgreSQL."""
    status, _, said = turnmill("status")
    assert status == UNAVAILABLE
    assert "turnmill up" not in said
    assert "Does it run, and does TURNMILL_DATABASE__URL lead to it?" in said


def test_the_doctor_of_a_machine_without_servers_only_notes_it(
    turnmill: Turnmill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TURNMILL_DATABASE__URL")
    status, said, _ = turnmill("doctor")
    assert status == 0
    assert "none configured" in said
    assert "turnmill up" in said


def test_the_doctor_of_a_dead_database_fails(turnmill: Turnmill) -> None:
    status, said, _ = turnmill("doctor")
    assert status == 1
    assert "broken" in said


def test_the_doctor_finds_a_misspelt_variable(
    turnmill: Turnmill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_DATABASE__ULR", "postgresql://x")
    status, said, _ = turnmill("doctor")
    assert status == 1
    assert "Did you mean TURNMILL_DATABASE__URL?" in said


def test_a_results_file_of_unknown_format_is_refused_before_the_database_is_asked(
    turnmill: Turnmill,
) -> None:
    status, _, said = turnmill("batch", "results", "batch_01a2", "-o", "answers.xls")
    assert status == USAGE
    assert "'answers.xls' is no format for results" in said


@pytest.mark.parametrize(
    ("backlog", "reason"),
    [
        ("folder", "is a folder"),
        ("missing.csv", "No such file"),
        ("old.xls", "'old.xls' is no backlog format"),
    ],
)
def test_what_is_no_backlog_is_refused_by_its_own_name(
    turnmill: Turnmill, tmp_path: Path, backlog: str, reason: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "old.xls").write_text("prompt")
    status, _, said = turnmill("batch", "run", str(tmp_path / backlog))
    assert status == USAGE
    assert reason in said
    assert "results" not in said


@pytest.mark.parametrize("words", [("ask", "Hello?"), ("demo",), ("batch", "run", "x.csv")])
def test_more_tokens_than_a_reply_may_have_are_refused_at_once(
    turnmill: Turnmill, words: tuple[str, ...]
) -> None:
    status, _, stderr = turnmill(*words, "--max-tokens", "131073")
    assert status == 2
    assert "131072" in stderr


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("tickets.csv", "is the backlog"),
        ("old.csv", "replace it with --overwrite"),
        ("old.csv/new.csv", "cannot be written"),
    ],
)
def test_a_results_file_that_cannot_be_written_is_refused_before_the_database_is_asked(
    turnmill: Turnmill, tmp_path: Path, output: str, reason: str
) -> None:
    for name in ("tickets.csv", "old.csv"):
        (tmp_path / name).write_text("prompt\nhi\n")
    backlog, results = str(tmp_path / "tickets.csv"), str(tmp_path / output)
    status, _, said = turnmill("batch", "run", backlog, "-o", results)
    assert status == USAGE
    assert reason in said
    assert (tmp_path / "old.csv").read_text() == "prompt\nhi\n"


def test_brackets_in_an_error_message_are_shown_as_they_are(turnmill: Turnmill) -> None:
    status, _, said = turnmill("batch", "results", "batch_01a2", "-o", "[red]answers.xls")
    assert status == USAGE
    assert "'[red]answers.xls'" in said


def test_an_unknown_command_is_refused_by_name(turnmill: Turnmill) -> None:
    status, _, said = turnmill("aks")
    assert status == 2
    assert "No such command 'aks'" in said


@pytest.mark.parametrize("terminal", ["dumb", "xterm"])
@pytest.mark.parametrize(
    ("columns", "width"), [(None, PIPED_WIDTH), ("90", 90), ("x", PIPED_WIDTH)]
)
def test_output_that_no_terminal_shows_is_wide(
    terminal: str, columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", terminal)
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert make_console().width == width


@pytest.mark.parametrize(
    ("words", "module", "extras"),
    [
        (("evaluate", "x"), "turnmill.compression.evaluate.page", "compression"),
        (("bench", "compression"), "turnmill.infra.bench.compression.run", "compression"),
        (("bench", "system"), "turnmill.infra.bench.system", "bench,embedded,transformers"),
        (("chaos",), "turnmill.infra.chaos.run", "chaos,embedded"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_a_command_without_its_libraries_names_the_extras_to_install(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], module: str, extras: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SettingsError) as raised:
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert f"{module} is not installed: pip install 'turnmill[{extras}]'" in str(raised.value)
