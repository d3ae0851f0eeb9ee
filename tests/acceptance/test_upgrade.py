"""An upgrade under load: the newest migration runs while processes of the commit before it work.

That commit's code comes out of the repository's history; without it the test is skipped.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import namedtuple_row

from turnmill.infra.migrations import head_revision

_REPOSITORY = Path(__file__).parents[2]
CONVERSATIONS, TURNS_EACH = 40, 8

#: `python -m turnmill_before`: the command line of the code before the newest migration. The
#: folders of this checkout leave the path, or namespace packages would mix the two.
_RUNNER = """
import sys
sys.path[:] = [{before!r}, *(path for path in sys.path if not path.endswith(".namespace"))]
from turnmill.producer.cli.app import main
main()
"""

_VERSIONS = "infra/migrations/versions"

_OVERTAKEN = """
SELECT later.id FROM turns earlier JOIN turns later USING (conversation_id)
WHERE earlier.seq < later.seq AND earlier.settled_at > later.started_at
"""


def _git(*arguments: str) -> bytes:
    ran = subprocess.run(["git", "-C", str(_REPOSITORY), *arguments], capture_output=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _has_history() -> bool:
    """False in an sdist and in a shallow clone."""
    if not (_REPOSITORY / ".git").exists():
        return False
    return _git("rev-parse", "--is-shallow-repository").strip() == b"false"


def _commit_before() -> str:
    """The newest one without the newest migration, and with each number of a migration once."""
    added = _git(
        *("log", "--diff-filter=A", "--format=%H", "--"), f"{_VERSIONS}/{head_revision()}_*.py"
    )
    for commit in _git("log", "--format=%H", f"{added.decode().split()[-1]}~1").decode().split():
        files = _git("ls-tree", "--name-only", commit, f"{_VERSIONS}/").decode().splitlines()
        numbers = [Path(file).name.partition("_")[0] for file in files if file.endswith(".py")]
        if len(numbers) == len(set(numbers)) and head_revision() not in numbers:
            return commit
    raise AssertionError("The history has no commit of a release before.")


@pytest.fixture
def folder_before(tmp_path: Path) -> Path:
    """A folder with the module `turnmill_before`."""
    if not _has_history():
        pytest.skip("the repository's history is not here")
    code = tmp_path / "before"
    code.mkdir()
    archive = _git("archive", _commit_before())
    subprocess.run(["tar", "-x", "-C", str(code)], input=archive, check=True)
    runner = _RUNNER.format(before=str(code / ".namespace"))
    (code / "turnmill_before.py").write_text(runner)
    return code


class Release:
    """The commands of one release, on the database and the broker that both share."""

    def __init__(self, module: str, variables: dict[str, str], folder: Path) -> None:
        self._command = [sys.executable, "-m", module]
        self._environment = os.environ | variables
        self._folder = folder
        self._stack = ExitStack()

    def run(self, *arguments: str) -> None:
        ran = subprocess.run(
            [*self._command, *arguments],
            env=self._environment,
            cwd=self._folder,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self._folder / f"{arguments[0]}.log").open("wb"))
        process = subprocess.Popen(
            [*self._command, *arguments],
            env=self._environment,
            cwd=self._folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.send_signal, signal.SIGKILL)
        return process

    def start_answering(self, eventually: Callable[..., None]) -> None:
        """A relay and a worker; the worker consumes when this returns."""
        self.start("relay")
        worker = self.start("worker")
        log = self._folder / "worker.log"
        eventually(lambda: b"worker.consuming" in log.read_bytes() or worker.poll() is not None, 40)
        assert worker.poll() is None, log.read_text()

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def releases(
    folder_before: Path, tmp_path: Path, empty_database_url: str, valkey_url: str
) -> Iterator[tuple[Release, Release]]:
    variables = {
        "TURNMILL_DATABASE__URL": empty_database_url,
        "TURNMILL_BROKER__URL": valkey_url,
        "TURNMILL_ENGINE__NAME": "echo",
        "TURNMILL_WORKER__CONCURRENCY": "4",
    }
    made = []
    for name, module in (("before", "turnmill_before"), ("after", "turnmill.producer.cli")):
        folder = tmp_path / f"run-{name}"
        folder.mkdir()
        own = {"TURNMILL_DATA": str(folder), "PYTHONPATH": str(folder_before)}
        made.append(Release(module, variables | own, folder))
    yield made[0], made[1]
    for release in made:
        release.close()


def write_backlog(file: Path) -> None:
    rows = [
        {"id": f"{number}-{turn}", "conversation": str(number), "turn": turn, "prompt": prompt}
        for number in range(CONVERSATIONS)
        for turn in range(TURNS_EACH)
        for prompt in [f"[[wait=0.1]] {number} {turn}"]
    ]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_an_upgrade_under_load_loses_doubles_and_reorders_nothing(
    releases: tuple[Release, Release],
    tmp_path: Path,
    empty_database_url: str,
    eventually: Callable[..., None],
) -> None:
    before, after = releases
    for name in ("first", "second"):
        write_backlog(tmp_path / f"{name}.jsonl")
    before.run("db", "upgrade")
    with psycopg.connect(empty_database_url, autocommit=True, row_factory=namedtuple_row) as link:

        def rows(query: str) -> list[Any]:
            return link.execute(query).fetchall()

        before.start_answering(eventually)
        first = before.start("batch", "run", str(tmp_path / "first.jsonl"), "--name", "first")
        eventually(lambda: len(rows("SELECT 1 FROM turns WHERE state = 'completed'")) > 20, 60)
        after.run("db", "upgrade")
        (upgraded,) = rows("SELECT clock_timestamp() AS at")
        after.start_answering(eventually)
        after.run("batch", "run", str(tmp_path / "second.jsonl"), "--name", "second")
        assert first.wait(120) == 0
        states = rows("SELECT state, count(*) AS n FROM turns GROUP BY state")
        assert [(row.state, row.n) for row in states] == [
            ("completed", 2 * CONVERSATIONS * TURNS_EACH)
        ]
        answers = "SELECT count(*) FROM attempts WHERE outcome = 'answered' GROUP BY turn_id"
        assert {row.count for row in rows(answers)} == {1}
        assert rows(_OVERTAKEN) == []
        assert rows("SELECT turn_id FROM outbox UNION ALL SELECT turn_id FROM chunks") == []
        late = f"SELECT DISTINCT worker_id FROM attempts WHERE started_at > '{upgraded.at}'"
        assert len(rows(late)) == 2, "workers of both releases answered after the migration"


def test_after_a_rollback_the_release_of_before_answers_on_the_newer_database(
    releases: tuple[Release, Release],
    tmp_path: Path,
    empty_database_url: str,
    eventually: Callable[..., None],
) -> None:
    before, after = releases
    for name in ("first", "second"):
        write_backlog(tmp_path / f"{name}.jsonl")
    after.run("db", "upgrade")
    after.start_answering(eventually)
    first = after.start("batch", "run", str(tmp_path / "first.jsonl"), "--name", "first")
    completed = "SELECT FROM turns WHERE state = 'completed'"
    with psycopg.connect(empty_database_url, autocommit=True) as link:
        eventually(lambda: len(link.execute(completed).fetchall()) > 20, 60)
        # The new release ends in the middle of its turns, without a word.
        after.close()
        assert first.poll() is not None
        before.start_answering(eventually)
        before.run("batch", "run", str(tmp_path / "second.jsonl"), "--name", "second")
        open_turns = "SELECT FROM turns WHERE state IN ('waiting', 'queued', 'running')"
        eventually(lambda: link.execute(open_turns).fetchall() == [], 60)
        answers = "SELECT count(*) FROM attempts WHERE outcome = 'answered' GROUP BY turn_id"
        assert {row[0] for row in link.execute(answers)} == {1}
        assert link.execute(_OVERTAKEN).fetchall() == []
