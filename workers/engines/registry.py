"""Engines by name. A new engine is one file and one line here, and the contract suite runs it."""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.settings import DEFAULT_MODEL, EngineSettings
from turnmill.workers.engines.base import Engine
from turnmill.workers.engines.catalogue import find_model
from turnmill.workers.engines.models import artifact_gguf, find_artifact, pulled_model

#: name → "module:Class", imported only when chosen: a missing library matters to its users alone.
ENGINES = {
    "echo": "turnmill.workers.engines.echo:EchoEngine",
    "openvino": "turnmill.workers.engines.openvino.engine:OpenVINOEngine",
    "tfserving": "turnmill.workers.engines.tfserving.engine:TFServingEngine",
    "transformers": "turnmill.workers.engines.torch.engine:TransformersEngine",
    "vllm": "turnmill.workers.engines.vllm.engine:VLLMEngine",
    "triton": "turnmill.workers.engines.triton.engine:TritonEngine",
    "openai_http": "turnmill.workers.engines.openai_http.engine:OpenAIEngine",
}

#: What an engine needs installed, and the extra that brings it.
REQUIREMENTS = {
    "openvino": ("openvino_genai", "openvino"),
    "tfserving": ("tokenizers", "remote"),
    "transformers": ("transformers", "transformers"),
    "vllm": ("vllm", "vllm"),
    "triton": ("tritonclient", "triton"),
    "openai_http": ("httpx", "remote"),
}


def resolve_engine_name(settings: EngineSettings) -> str:
    """The engine that `auto` stands for here.

    vLLM on a GPU, OpenVINO on a CPU where it can open the model, else transformers.

    Raises:
        SettingsError: the name is unknown, or the engine's libraries are not installed.
    """
    name = settings.name
    if name == "auto":
        name = _best_installed(settings)
    if name not in ENGINES:
        raise SettingsError(f"There is no engine '{name}'. Choose auto, {', '.join(ENGINES)}.")
    if name in REQUIREMENTS and find_spec(REQUIREMENTS[name][0]) is None:
        raise SettingsError(
            f"The engine '{name}' is not installed: "
            f"pip install 'turnmill[{REQUIREMENTS[name][1]}]'."
        )
    return name


def create_engine(settings: EngineSettings) -> Engine:
    """The configured engine, not started yet. Raises `SettingsError` like `resolve_engine_name`."""
    module, _, attribute = ENGINES[resolve_engine_name(settings)].partition(":")
    engine: Engine = getattr(import_module(module), attribute)(settings)
    return engine


def _best_installed(settings: EngineSettings) -> str:
    if settings.device != "cpu" and _has_gpu():
        order = ["transformers", "openvino"]
        if _suits_vllm(settings):
            order.insert(0, "vllm")
    else:
        order = ["transformers", "openvino"]
        if _suits_openvino(settings):
            order.reverse()
    for name in order:
        if find_spec(REQUIREMENTS[name][0]) is not None:
            return name
    raise SettingsError(
        "No engine is installed. On a CPU: pip install 'turnmill[openvino]'; "
        "on a GPU: pip install 'turnmill[vllm]' or 'turnmill[transformers]'."
    )


def _suits_vllm(settings: EngineSettings) -> bool:
    return settings.quantization in ("none", "nf4") and settings.device in ("auto", "cuda")


def _suits_openvino(settings: EngineSettings) -> bool:
    if settings.quantization == "nf4" or settings.device.startswith("cuda"):
        return False
    if artifact := find_artifact(settings):
        return artifact_gguf(artifact) is not None or (artifact / "openvino_model.xml").exists()
    if pulled := pulled_model(settings):
        return "gguf" in pulled
    path = Path(settings.model).expanduser()
    if path.is_dir():
        return (path / "openvino_model.xml").exists() or not (path / "config.json").exists()
    is_known = settings.model == DEFAULT_MODEL or find_model(settings.model) is not None
    return is_known or path.suffix == ".gguf"


def _has_gpu() -> bool:
    if find_spec("torch") is None:
        return False
    return bool(import_module("torch").cuda.is_available())
