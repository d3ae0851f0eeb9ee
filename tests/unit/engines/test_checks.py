"""What keeps an engine from starting is found without starting it, all of it at once."""

import json
import struct
from pathlib import Path

import pytest

from turnmill.compression.formats import gguf as gguf_format
from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import DEFAULT_MODEL, EngineSettings
from turnmill.workers.engines import checks
from turnmill.workers.engines.checks import examine, refuse_unusable

gguf = pytest.importorskip("gguf", reason="pip install 'turnmill[openvino]'")
numpy = pytest.importorskip("numpy")


def write_gguf(path: Path) -> int:
    """Write a small file, and return its size."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, kind in (("a", "F32"), ("b", "Q8_0"), ("c", "Q4_K"), ("d", "BF16")):
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        data = numpy.zeros((4, 256 // block * size), dtype=numpy.uint8)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size


def write_checkpoint(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(32)
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for name in names:
        (folder / name).write_bytes(content)
    index = {"weight_map": {"w": names[0], "v": names[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def problems(model: object, models_dir: Path, name: str = "transformers") -> str:
    settings = EngineSettings(name=name, model=str(model), models_dir=models_dir)
    return "\n".join(examine(settings).problems)


@pytest.fixture(autouse=True)
def libraries_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: object())
    monkeypatch.setattr(checks, "resolve_engine_name", lambda settings: settings.name)


def test_a_complete_model_has_no_problems(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    assert problems(tmp_path / "m.gguf", tmp_path) == ""
    assert problems(write_checkpoint(tmp_path / "whole"), tmp_path) == ""
    assert problems(DEFAULT_MODEL, tmp_path) == ""
    assert problems("anything at all", tmp_path, "echo") == ""


def test_the_size_of_every_kind_of_tensor_is_known() -> None:
    ours = gguf_format._BLOCKS
    assert ours == {kind: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] for kind in ours}


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_gguf_file_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.gguf"
    size = write_gguf(path)
    path.write_bytes(path.read_bytes()[: int(size * share)])
    assert str(path) in problems(path, tmp_path)
    assert str(path) in problems(tmp_path, tmp_path)


def test_what_a_checkpoint_lacks_is_named_at_once(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "part")
    (folder / "model-00002-of-00002.safetensors").unlink()
    (folder / "tokenizer.json").unlink()
    first = folder / "model-00001-of-00002.safetensors"
    first.write_bytes(first.read_bytes()[:-1])
    said = problems(folder, tmp_path)
    assert "lacks 1 of 2 files of weights, model-00002-of-00002" in said
    assert "no tokenizer" in said
    assert f"{first} is truncated" in said
    for path in folder.glob("model*"):
        path.unlink()
    assert "no weights" in problems(folder, tmp_path)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("/no/such/folder", "neither"),
        ("/no/such/file.gguf", "There is no file"),
        ("qwen2.5-0.5b-instruct", "turnmill models pull qwen2.5-0.5b-instruct"),
        ("misspelt", "turnmill models available"),
    ],
)
def test_a_model_that_is_not_there_is_refused(tmp_path: Path, model: str, words: str) -> None:
    assert words in problems(model, tmp_path)


def test_a_hub_id_without_a_network_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "HTTPS_PROXY" in problems("owner/model", tmp_path)


def test_engine_library_and_model_are_named_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "jinja2" else object())
    settings = EngineSettings(name="openvino", model="/no/such.gguf", models_dir=tmp_path)
    with pytest.raises(SettingsError) as refused:
        refuse_unusable(settings)
    assert "pip install 'turnmill[openvino]'" in refused.value.message
    assert "/no/such.gguf" in refused.value.message


def test_a_model_larger_than_the_memory_is_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_GPU_DEVICES", ())
    monkeypatch.setattr(checks, "machine_memory", lambda: 2**30)
    write_gguf(tmp_path / "m.gguf")
    settings = EngineSettings(name="openvino", model=str(tmp_path / "m.gguf"), models_dir=tmp_path)
    (warning,) = refuse_unusable(settings)
    assert "turnmill models available" in warning
    monkeypatch.setattr(checks, "machine_memory", lambda: 2**36)
    assert refuse_unusable(settings) == ()
