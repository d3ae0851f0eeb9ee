"""Models of the catalogue come from the hub whole and right, whatever the network does."""

import json
import re
import shutil
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from turnmill.infra.mocks.hub import Hub
from turnmill.producer.cli.compression.catalogue import suggestion
from turnmill.producer.cli.compression.models_group import app
from turnmill.schemas.errors import (
    EngineFailure,
    EngineUnavailable,
    NotFound,
    SettingsError,
    TurnmillError,
)
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines import hub as hub_module
from turnmill.workers.engines.catalogue import CATALOGUE, find_model, recommend
from turnmill.workers.engines.hub import (
    fetch_repository,
    pull,
    pulled_path,
    reach,
    remove_pulled,
    verify_pulled,
)
from turnmill.workers.engines.models import prepare_model
from turnmill.workers.engines.registry import resolve_engine_name

pytest.importorskip("huggingface_hub", reason="pip install 'turnmill[openvino]'")

MODEL = CATALOGUE[1]
WEIGHTS = bytes(range(256)) * 4000

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    for name in ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub_module, "_PAUSE_S", 0.01)
    with Hub() as running:
        running.files[MODEL.gguf_repo] = {MODEL.gguf_file: WEIGHTS, "other-q4.gguf": b"no"}
        running.files[MODEL.checkpoint_repo] = {
            "config.json": b"{}",
            "model-00001-of-00001.safetensors": WEIGHTS,
            "README.md": b"no",
            "original/consolidated.00.safetensors": b"no",
        }
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def fetch(folder: Path) -> Path:
    return pull(MODEL, "gguf", folder, lambda done, total: None)


def failure(folder: Path) -> TurnmillError:
    with pytest.raises(TurnmillError) as caught:
        fetch(folder)
    assert pulled_path(MODEL, "gguf", folder) is None
    return caught.value


def test_a_pulled_model_is_used_by_its_name(hub: Hub, tmp_path: Path) -> None:
    settings = EngineSettings(model=MODEL.name, models_dir=tmp_path)
    with pytest.raises(SettingsError, match=f"turnmill models pull {MODEL.name}"):
        prepare_model(settings, "safetensors")
    reports: list[tuple[int, int]] = []
    path = pull(MODEL, "gguf", tmp_path, lambda done, total: reports.append((done, total)))
    assert path.read_bytes() == WEIGHTS
    assert reports[-1] == (len(WEIGHTS), len(WEIGHTS))
    folder = pull(MODEL, "safetensors", tmp_path, lambda done, total: None)
    assert {each.name for each in folder.iterdir()} == {
        "config.json",
        "model-00001-of-00001.safetensors",
        hub_module.RECORD,
    }
    assert prepare_model(settings, "safetensors") == str(folder)
    assert verify_pulled(MODEL, tmp_path) == 3


def test_auto_chooses_the_engine_that_opens_what_was_pulled(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("openvino_genai")
    pytest.importorskip("transformers")
    settings = EngineSettings(model=MODEL.name, models_dir=tmp_path, device="cpu")
    pull(MODEL, "safetensors", tmp_path, lambda done, total: None)
    assert resolve_engine_name(settings) == "transformers"
    fetch(tmp_path)
    assert resolve_engine_name(settings) == "openvino"


def test_a_download_that_breaks_off_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.file_faults = ["cut", 503, "cut"]
    assert fetch(tmp_path).read_bytes() == WEIGHTS
    assert len(hub.ranges) == 3
    starts = [int(each[len("bytes=") : -1]) for each in hub.ranges if each]
    assert len(WEIGHTS) // 3 < starts[0] < starts[1] < len(WEIGHTS)


def test_the_next_command_resumes_what_an_interrupted_one_left(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(MODEL, "gguf", tmp_path, stop)
    assert pulled_path(MODEL, "gguf", tmp_path) is None
    (part,) = tmp_path.rglob("*.part")
    part.write_bytes(WEIGHTS[:1000])
    assert fetch(tmp_path).read_bytes() == WEIGHTS
    assert hub.ranges[-1] == "bytes=1000-"


def test_a_server_that_ignores_ranges_sends_the_file_again(hub: Hub, tmp_path: Path) -> None:
    hub.knows_ranges = False
    hub.file_faults = ["cut", "slow"]
    assert fetch(tmp_path).read_bytes() == WEIGHTS


def test_a_file_that_changed_meanwhile_is_not_continued(hub: Hub, tmp_path: Path) -> None:
    hub.file_faults = ["cut", *[503] * 4]
    assert isinstance(failure(tmp_path), EngineUnavailable)
    hub.files[MODEL.gguf_repo][MODEL.gguf_file] = WEIGHTS[::-1]
    assert fetch(tmp_path).read_bytes() == WEIGHTS[::-1]


def test_whole_files_of_another_revision_are_not_taken(hub: Hub, tmp_path: Path) -> None:
    files = hub.files[MODEL.checkpoint_repo]
    partial = tmp_path / hub_module.FOLDER / MODEL.name / f"safetensors{hub_module.PARTIAL}"
    partial.mkdir(parents=True)
    (partial / "config.json").write_bytes(b'{"old": true}')
    folder = pull(MODEL, "safetensors", tmp_path, lambda done, total: None)
    assert (folder / "config.json").read_bytes() == files["config.json"]
    assert verify_pulled(MODEL, tmp_path) == 2


def test_what_an_interrupted_removal_left_is_in_nobodys_way(hub: Hub, tmp_path: Path) -> None:
    path = fetch(tmp_path)
    (path.parent / hub_module.RECORD).unlink()
    (path.parent / "left").write_text("x")
    assert fetch(tmp_path).read_bytes() == WEIGHTS
    assert not (path.parent / "left").exists()


def test_wrong_bytes_are_never_taken(hub: Hub, tmp_path: Path) -> None:
    hub.file_faults = ["wrong"]
    error = failure(tmp_path)
    assert isinstance(error, EngineFailure)
    assert "checksum" in error.message
    assert list(tmp_path.rglob("*.part")) == []
    assert fetch(tmp_path).read_bytes() == WEIGHTS


def test_a_file_that_changes_on_the_disk_is_found(hub: Hub, tmp_path: Path) -> None:
    fetch(tmp_path).write_bytes(WEIGHTS[::-1])
    with pytest.raises(EngineFailure, match="not as it was downloaded"):
        verify_pulled(MODEL, tmp_path)
    remove_pulled(MODEL, tmp_path)
    assert pulled_path(MODEL, "gguf", tmp_path) is None
    with pytest.raises(NotFound):
        verify_pulled(MODEL, tmp_path)


def test_a_gated_model_asks_for_a_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_right"  # noqa: S105
    assert "HF_TOKEN" in failure(tmp_path).message
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = failure(tmp_path).message
    assert "accepted its conditions (403)" in message
    assert "hf_wrong" not in message
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert fetch(tmp_path).read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, SettingsError, "Set HF_TOKEN"),
        (404, NotFound, "turnmill models available"),
        (429, EngineUnavailable, "answers 429"),
        (503, EngineUnavailable, "What arrived is kept"),
    ],
)
def test_a_refusal_says_what_to_do(
    hub: Hub, tmp_path: Path, status: int, kind: type[TurnmillError], words: str
) -> None:
    hub.list_faults = [status]
    error = failure(tmp_path)
    assert isinstance(error, kind)
    assert words in error.message


def test_a_file_that_the_hub_renamed_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.files[MODEL.gguf_repo] = {"renamed.gguf": WEIGHTS}
    assert MODEL.gguf_file in failure(tmp_path).message


def test_without_a_network_proxy_and_mirror_are_named(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    message = failure(tmp_path).message
    assert "HTTPS_PROXY" in message
    assert "HF_ENDPOINT" in message


@pytest.mark.parametrize("ask", [fetch_repository, reach])
def test_a_path_with_a_slip_is_not_taken_for_a_failing_hub(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, ask: Callable[[str], object]
) -> None:
    with pytest.raises(NotFound, match=r"There is no folder 'models/my-modle' here.* has no"):
        ask("models/my-modle")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SettingsError, match=r"There is no folder 'models/my-modle' .*HTTPS_PROXY"):
        ask("models/my-modle")


def test_a_full_disk_is_noticed_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 10, 1000))
    assert "TURNMILL_ENGINE__MODELS_DIR" in failure(tmp_path).message
    assert hub.ranges == []


def test_two_commands_do_not_pull_one_model(hub: Hub, tmp_path: Path) -> None:
    def pull_too(done: int, total: int) -> None:
        with pytest.raises(SettingsError, match="Another process"):
            fetch(tmp_path)

    pull(MODEL, "gguf", tmp_path, pull_too)


Run = Callable[..., str]


@pytest.fixture
def run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TURNMILL_DATA", str(tmp_path))

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, words, catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    return run


def commands_in(message: str) -> list[list[str]]:
    """The words that follow `turnmill models` in a message, of each command."""
    found = re.findall(r"turnmill models ([\w. -]*\w)", message)
    return [words.split() for words in found]


def test_messages_name_commands_that_help(hub: Hub, tmp_path: Path, run: Run) -> None:
    models_dir = tmp_path / "models"
    settings = EngineSettings(model=MODEL.name, models_dir=models_dir)
    with pytest.raises(NotFound) as absent:
        verify_pulled(MODEL, models_dir)
    with pytest.raises(SettingsError) as unknown:
        prepare_model(settings.model_copy(update={"model": "qwen"}), "gguf")
    hub.list_faults = [404]
    for error in (absent.value, unknown.value, failure(models_dir)):
        for words in commands_in(error.message):
            assert MODEL.name in run(*words)
    run("remove", MODEL.name)
    with pytest.raises(SettingsError) as missing:
        prepare_model(settings, "safetensors")
    for words in commands_in(missing.value.message):
        run(*words)
    (pulled_path(MODEL, "safetensors", models_dir) / "config.json").write_text("changed")  # type: ignore[operator]
    with pytest.raises(EngineFailure) as changed:
        verify_pulled(MODEL, models_dir)
    assert [run(*words) for words in commands_in(changed.value.message)]
    assert verify_pulled(MODEL, models_dir)
    command = suggestion()
    assert command is None or commands_in(command)[0][0] == "pull"


def test_commands_pull_list_verify_and_remove(run: Run) -> None:
    said = run("pull", MODEL.name)
    assert "% of 1.0 MB" in said
    assert f"turnmill up --model {MODEL.name}" in said
    assert "already" in run("pull", MODEL.name)
    assert MODEL.name in run("list")
    assert "1 files" in run("verify", MODEL.name)
    rows = {row["name"]: row for row in json.loads(run("available", "--json"))}
    assert rows[MODEL.name]["pulled"] == ["gguf"]
    assert set(rows) == {each.name for each in CATALOGUE}
    assert "Removed" in run("remove", MODEL.name)
    assert MODEL.name not in run("list")


def test_the_suggested_model_fits_the_machine() -> None:
    assert recommend(2**30) is None
    small, large = recommend(4 * 2**30), recommend(64 * 2**30)
    assert small is not None
    assert large is not None
    assert small.billions < large.billions
    assert small.memory_needed() < 4 * 2**30
    assert find_model(large.name.upper()) is large
