"""The examples that `--help` gives, run in order as an engineer would run them."""

import errno
import json
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tests.compression_models import make_conversations
from turnmill.compression.checkpoint import load_tokenizer
from turnmill.compression.data import read_conversations
from turnmill.compression.store import ModelStore
from turnmill.compression.texts import Windows, make_texts, part_of
from turnmill.producer.cli.app import app
from turnmill.producer.cli.compression import disk
from turnmill.producer.cli.compression.compress import name_of
from turnmill.schemas.errors import InvalidInput, SettingsError
from turnmill.schemas.settings import load_settings

pytest.importorskip("transformers", reason="pip install 'turnmill[compression]'")
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama_maker: Callable[..., Any],
    tiny_tokenizer: Any,
) -> Path:
    """A folder with what the examples name: `my-model` and `chats.jsonl`."""
    folder = tmp_path_factory.mktemp("place")
    tiny_llama_maker().save_pretrained(folder / "my-model")
    tiny_tokenizer.save_pretrained(folder / "my-model")
    rows = [{"id": each.id, "messages": each.messages} for each in make_conversations()]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def turnmill(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Run a command line and return what it prints; it must succeed."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("TURNMILL_DATA", str(place / "data"))
    monkeypatch.setenv("COLUMNS", "200")

    def run(line: str) -> str:
        done = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    return run


def examples(*path: str) -> list[str]:
    """The command lines after `Example:` in the command's own help."""
    command: Any = get_command(app)
    for name in path:
        command = command.commands[name]
    _, *found = command.help.split("Example:")
    return [" ".join(each.split()) for each in found]


def test_the_examples_lead_from_a_checkpoint_to_the_promoted_artifact(
    turnmill: Callable[[str], str], place: Path
) -> None:
    for line in examples("compress", "run"):
        turnmill(line)
    turnmill("turnmill models promote by-flags --force")
    for name in ("list", "show", "verify", "promote", "rollback"):
        for line in examples("models", name):
            said = turnmill(line)
            assert said.strip(), line
    assert "by-flags is promoted again" in said

    history = turnmill("turnmill models list --history")

    assert [line.split()[3] for line in history.splitlines()[1:]] == [
        "promote",
        "promote",
        "rollback",
    ]
    said = turnmill("turnmill models show my-model-int8")
    assert len(re.findall(r"\d\.\d{3}× the original's perplexity, KL \d", said)) == 2
    assert "report.md" in said
    shown = json.loads(turnmill("turnmill models show my-model-int8 --json"))
    assert shown["report"]["rows"]
    assert (place / "data/models/artifacts/my-model-int8/report/report.md").exists()


def test_a_recipe_or_steps_are_asked_for_but_not_both(turnmill: Callable[[str], str]) -> None:
    for options in ("", "--recipe f16 --step export"):
        with pytest.raises(InvalidInput, match="either --recipe or --step"):
            turnmill(f"turnmill compress my-model --data chats.jsonl {options}")


@pytest.mark.parametrize("flag", ["--limit size=0.9", "--window length=64", "--seed 1"])
def test_a_flag_that_a_recipe_would_overrule_is_refused(
    turnmill: Callable[[str], str], flag: str
) -> None:
    with pytest.raises(InvalidInput, match=f"{flag.split()[0]} would be ignored"):
        turnmill(f"turnmill compress my-model --recipe int8 --data chats.jsonl {flag}")


def test_a_model_is_called_by_its_own_name_and_no_library_draws_bars(
    turnmill: Callable[[str], str],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    settings = load_settings()
    monkeypatch.chdir(place / "my-model")
    assert name_of(".", settings) == "my-model"
    assert name_of("../my-model/", settings) == "my-model"
    said = turnmill(FULL.replace("my-model", ".").replace("chats.jsonl", "../chats.jsonl"))
    assert "%|" not in said
    turnmill("turnmill models promote full --force")
    assert name_of("promoted", settings) == "full"
    assert ModelStore(settings.models_dir).manifest("full").base.name == "my-model"


def test_the_examples_of_distillation_run(turnmill: Callable[[str], str], place: Path) -> None:
    (line,) = examples("compress", "classifier")
    assert "student" in turnmill(line)
    assert (place / "intents" / "config.json").exists()
    with pytest.raises(InvalidInput, match="--divergence: Input should be 'forward'"):
        turnmill(f"{line} --divergence sideways")
    (line,) = examples("compress", "backlog")
    turnmill(line)
    rows = [json.loads(each) for each in (place / "backlog.jsonl").read_text().splitlines()]
    results = [
        {"id": row["id"], "state": "completed", "reply": "It is on its way."} for row in rows
    ]
    (place / "backlog-results.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in results)
    )
    (line,) = examples("compress", "chats")
    assert f"{len(rows)} conversations" in turnmill(line)


STUDENT = """
name = "student"
[windows]
length = 64
calibration = 4
train = 1024
heldout = 2
prose = 2
[[step]]
kind = "distill"
layers = 1
steps = 2
batch = 2
length = 32
alpha = 1.0
"""


def test_the_guides_way_from_a_teacher_behind_the_batch_lane_to_its_student(
    turnmill: Callable[[str], str],
    place: Path,
    make_system: Callable[..., Any],
    database_url: str,
    valkey_url: str,
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The teacher is a worker with the tiny model, on a real PostgreSQL and a real broker."""
    backlog, batch, chats, distil = guide_block("turnmill compress backlog")
    # Of other tests; a batch replaces no file.
    (place / "backlog-results.jsonl").unlink(missing_ok=True)
    (place / "student.toml").write_text(STUDENT)
    system = make_system(database_url, valkey_url)
    system.start("relay")
    worker = system.start(
        "worker",
        TURNMILL_ENGINE__NAME="transformers",
        TURNMILL_ENGINE__MODEL=str(place / "my-model"),
        TURNMILL_ENGINE__SERVED_NAME=system.settings.engine.model_name,
        TURNMILL_ENGINE__DEVICE="cpu",
        TURNMILL_ENGINE__KV_CACHE_GIB="0.1",
        TURNMILL_ENGINE__CONTEXT_WINDOW="512",
    )
    eventually(lambda: worker.says("worker.consuming") or not worker.is_running, 180)
    for name in ("TURNMILL_DATABASE__URL", "TURNMILL_BROKER__URL"):
        monkeypatch.setenv(name, system.variables[name])

    turnmill(backlog)
    turnmill(f"{batch} --max-tokens 6")
    turnmill(chats)
    asked = rows_of(place / "backlog.jsonl")
    taught = rows_of(place / "teacher-chats.jsonl")
    assert len(asked) > 30
    assert system.count("lane = 'batch' AND state = 'completed'") == len(asked)
    # The tiny teacher may have nothing to say to a few.
    assert len(taught) > 0.8 * len(asked)
    replies = {row["id"]: row.get("reply") for row in rows_of(place / "backlog-results.jsonl")}
    assert all(replies[row["id"]] == row["messages"][-1]["content"] for row in taught)

    turnmill(f"{distil} --no-evaluate")

    manifest = json.loads(turnmill("turnmill models show my-model-student --json"))
    assert manifest["steps"][0]["told"]["steps"] == 2
    tokenizer = load_tokenizer(place / "my-model")
    given = read_conversations([place / "chats.jsonl", place / "teacher-chats.jsonl"])
    windows = Windows(length=64, calibration=4, train=1024, heldout=2, prose=2)
    texts = make_texts(given, "Prose.", tokenizer, windows)
    assert manifest["data_sha256"] == texts.digest
    trained = tokenizer.decode(texts.train.flatten())
    # The last window may cut one off.
    missing = [row for row in taught if row["messages"][-1]["content"] not in trained]
    assert len(missing) <= 1


def test_a_teachers_replies_alone_name_what_is_missing(
    turnmill: Callable[[str], str], place: Path
) -> None:
    rows = [row for row in rows_of(place / "chats.jsonl") if part_of(row["id"]) == "train"]
    (place / "alone.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InvalidInput, match=r"'heldout'.*give the conversations that it was asked"):
        turnmill("turnmill compress my-model --recipe f16 --data alone.jsonl")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def guide_block(beginning: str) -> list[str]:
    """The commands of the guide's block that begins with this one, without their comments."""
    guide = (Path(__file__).parents[3] / "docs/compression.md").read_text()
    (block,) = [each for each in guide.split("```") if each.strip().startswith(beginning)]
    return [line.partition("  #")[0].strip() for line in block.strip().splitlines()]


def test_the_guides_command_for_a_classifier_of_tickets_runs(
    turnmill: Callable[[str], str], place: Path
) -> None:
    (line,) = guide_block("turnmill compress classifier")
    assert "smollm2-135m-instruct --layers 6 --steps 60" in line
    tiny = line.replace(
        "smollm2-135m-instruct --layers 6 --steps 60", "my-model --layers 1 --steps 2"
    )
    assert "student" in turnmill(tiny.replace("-o intents", "-o guide-intents"))
    config = json.loads((place / "guide-intents" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (config["num_hidden_layers"], len(config["id2label"])) == (1, 8)


def test_the_guides_command_for_l1_leaves_a_sparse_artifact(
    turnmill: Callable[[str], str],
) -> None:
    guide = (Path(__file__).parents[3] / "docs/compression.md").read_text()
    (line,) = (each for each in guide.splitlines() if "l1=" in each)
    turnmill(line)
    manifest = json.loads(turnmill("turnmill models show sparse --json"))
    finetune, prune = (each["told"] for each in manifest["steps"])
    assert finetune["zeros"] > 0.01
    assert finetune["l1_norm"] > 0
    assert prune["zeros"] >= 0.3


def test_evaluate_writes_a_report_of_models_beside_their_original(
    turnmill: Callable[[str], str], place: Path
) -> None:
    turnmill("turnmill compress my-model --recipe f16 --data chats.jsonl")

    (example,) = examples("evaluate", "models")
    said = turnmill(f"{example} --windows 2 --replies 1 --speed-rounds 1")

    report = json.loads((place / "report" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == ["original", "my-model-f16"]
    assert all(row["speed"]["batch_8"] > 0 for row in report["rows"])
    assert "my-model-f16" in said
    assert (place / "report" / "frontier.png").stat().st_size


def test_a_gguf_file_is_evaluated_beside_its_checkpoint(
    turnmill: Callable[[str], str], place: Path
) -> None:
    turnmill("turnmill compress my-model --recipe f16 --data chats.jsonl")
    gguf = "data/models/artifacts/my-model-f16/model-f16.gguf"

    options = "--data chats.jsonl --windows 2 --replies 0 --speed-rounds 0 --output gguf"
    turnmill(f"turnmill evaluate {gguf} --against my-model {options}")

    row = json.loads((place / "gguf" / "report.json").read_text())["rows"][1]
    assert row["quantization"] == "gguf"
    assert row["prose"]["ratio"]["value"] == pytest.approx(1, abs=0.01)


def test_auto_names_the_best_artifact_and_the_command_that_serves_it(
    turnmill: Callable[[str], str],
) -> None:
    (example,) = examples("compress", "auto")

    said = turnmill(example)

    assert "Best: my-model-f16. Serve it: turnmill models promote my-model-f16" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--budget soon", "--budget 'soon': expected an amount such as 30s, 30m, 30h"),
        ("--budget 0m", "--budget '0m'"),
        ("--max-size 120MiB", "--max-size '120MiB': expected an amount such as 30kb, 30mb"),
        ("--recipe nothing", "no recipe 'nothing'"),
    ],
)
def test_auto_refuses_what_it_cannot_read(
    turnmill: Callable[[str], str], options: str, message: str
) -> None:
    from turnmill.schemas.errors import InvalidInput

    with pytest.raises(InvalidInput, match=message):
        turnmill(f"turnmill compress auto my-model --data chats.jsonl {options}")


#: A recipe whose first file of weights is larger than the limit below.
FULL = (
    "turnmill compress my-model --step quantize:bits=8,method=rtn --data chats.jsonl --name full "
    "--no-evaluate"
)


def test_a_disk_that_is_full_is_told_and_the_same_command_resumes(
    turnmill: Callable[[str], str], place: Path
) -> None:
    """The system refuses bytes 100,001 and on of any file, as a full disk does."""
    program = "from turnmill.producer.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *shlex.split(FULL)[1:]],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 64, done.stderr
    assert f"A file in {place}/data/models or in the folder of --output" in done.stderr
    assert "Free space there" in done.stderr
    assert "Traceback" not in done.stderr
    assert "full" not in ModelStore(place / "data" / "models").names()
    turnmill(FULL)
    assert "full" in ModelStore(place / "data" / "models").names()


@pytest.mark.parametrize(
    ("line", "path"),
    [
        (FULL, "a-file/models"),
        ("turnmill evaluate my-model --data chats.jsonl -o a-file/report", "a-file/report"),
        ("turnmill compress auto my-model --data chats.jsonl -o a-file/report", "a-file/report"),
    ],
)
def test_a_folder_that_cannot_be_made_is_named(
    turnmill: Callable[[str], str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    path: str,
) -> None:
    (place / "a-file").touch()
    monkeypatch.setenv("TURNMILL_DATA", str(place / "a-file"))
    with pytest.raises(SettingsError, match=f"{path}.* Not a directory. Name another path"):
        turnmill(line)


def test_the_list_tells_what_interrupted_runs_hold(
    turnmill: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    assert "Interrupted" not in turnmill("turnmill models list")
    run = tmp_path / "models" / "artifacts" / ".runs" / "1f"
    run.mkdir(parents=True)
    (run / ".lock").touch()
    assert "Interrupted" not in turnmill("turnmill models list")
    (run / "training.pt").write_bytes(bytes(5000))
    said = turnmill("turnmill models list")
    assert "Interrupted runs hold 5.0 kB" in said
    assert str(run.parent) in said.replace("\n", "")


def test_a_promotion_that_cannot_be_written_is_told(
    turnmill: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))
    turnmill(FULL)
    (tmp_path / "models" / "artifacts" / "promotions.jsonl").mkdir()
    with pytest.raises(SettingsError, match=r"promotions\.jsonl.* Is a directory"):
        turnmill("turnmill models promote full --force")


def test_damaged_weights_are_told(turnmill: Callable[[str], str], place: Path) -> None:
    shutil.copytree(place / "my-model", place / "damaged")
    weights = place / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InvalidInput, match="damaged or cut short"):
        turnmill(FULL.replace("my-model", "damaged").replace("full", "damaged"))


def test_errors_that_no_file_made_stay_what_they_are() -> None:
    for error in (BrokenPipeError(errno.EPIPE, "gone"), ValueError("x"), RuntimeError("y")):
        assert disk.error_of(error) is None
    told = disk.error_of(RuntimeError("[enforce fail at inline_container.cc:659] unexpected pos"))
    assert told is not None
    assert "No space left" in told.message
