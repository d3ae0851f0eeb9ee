"""The registry: every line leads to an engine, and a wrong name says what to do."""

import sys
from importlib import import_module
from importlib.util import find_spec

import pytest

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import EngineSettings
from turnmill.workers.engines import registry
from turnmill.workers.engines.registry import (
    ENGINES,
    REQUIREMENTS,
    create_engine,
    resolve_engine_name,
)


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_every_name_leads_to_a_class_or_says_how_to_install_it(name: str) -> None:
    settings = EngineSettings(name=name)
    if name in REQUIREMENTS and find_spec(REQUIREMENTS[name][0]) is None:
        with pytest.raises(SettingsError, match=r"pip install 'turnmill\["):
            resolve_engine_name(settings)
        return
    assert resolve_engine_name(settings) == name
    module, _, attribute = ENGINES[name].partition(":")
    assert callable(getattr(import_module(module), attribute))


def test_an_unknown_engine_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(SettingsError) as refused:
        create_engine(EngineSettings(name="vlm"))
    assert "'vlm'" in refused.value.message
    assert all(name in refused.value.message for name in ("auto", *ENGINES))


def test_an_engine_that_is_not_installed_names_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    for name, (_, extra) in REQUIREMENTS.items():
        with pytest.raises(SettingsError) as refused:
            resolve_engine_name(EngineSettings(name=name))
        assert f"pip install 'turnmill[{extra}]'" in refused.value.message
    with pytest.raises(SettingsError, match="No engine is installed"):
        resolve_engine_name(EngineSettings(name="auto", device="cpu"))


def test_auto_prefers_openvino_on_a_cpu_and_falls_back_to_what_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = EngineSettings(name="auto", device="cpu")
    installed = {"openvino_genai", "transformers"}
    monkeypatch.setattr(registry, "find_spec", lambda name: name in installed or None)
    assert resolve_engine_name(settings) == "openvino"
    installed.remove("openvino_genai")
    assert resolve_engine_name(settings) == "transformers"


def test_auto_takes_transformers_for_what_openvino_cannot_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: True)
    for settings in (
        EngineSettings(device="cpu", model="someone/some-model"),
        EngineSettings(device="cpu", quantization="nf4"),
    ):
        assert resolve_engine_name(settings) == "transformers"


def test_auto_takes_vllm_on_a_gpu_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"vllm", "openvino_genai", "transformers"}
    monkeypatch.setattr(registry, "find_spec", lambda name: name in installed or None)
    monkeypatch.setattr(registry, "_has_gpu", lambda: True)
    assert resolve_engine_name(EngineSettings()) == "vllm"
    assert resolve_engine_name(EngineSettings(device="cpu")) == "openvino"
    assert resolve_engine_name(EngineSettings(device="cuda:1")) == "transformers"
    for bits in ("int8", "int4"):
        assert resolve_engine_name(EngineSettings(quantization=bits)) == "transformers"
        assert resolve_engine_name(EngineSettings(quantization=bits, device="cpu")) == "openvino"
    installed.remove("vllm")
    assert resolve_engine_name(EngineSettings()) == "transformers"
    monkeypatch.setattr(registry, "_has_gpu", lambda: False)
    assert resolve_engine_name(EngineSettings()) == "openvino"


def test_the_transformers_engine_leaves_int4_to_openvino() -> None:
    pytest.importorskip("transformers", reason="pip install 'turnmill[transformers]'")
    with pytest.raises(SettingsError, match="nf4"):
        create_engine(EngineSettings(name="transformers", quantization="int4"))


def test_choosing_echo_loads_no_heavy_library() -> None:
    # What other tests of this session have imported does not count.
    heavy = {"torch", "transformers", "openvino_genai", "vllm"} - set(sys.modules)
    create_engine(EngineSettings(name="echo"))
    assert not heavy & set(sys.modules)
