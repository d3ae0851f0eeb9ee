"""Find what keeps an engine from starting, in seconds and before anything is started.

The engine's name and libraries, and the model: paths, checkpoints with missing or truncated files,
names that no hub gives. Loading the model finds the rest.
"""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from turnmill.compression.formats.gguf import read_header
from turnmill.schemas.errors import SettingsError, TurnmillError
from turnmill.schemas.settings import DEFAULT_MODEL, EngineSettings
from turnmill.workers.engines.catalogue import find_model, machine_memory, memory_needed
from turnmill.workers.engines.hub import reach
from turnmill.workers.engines.models import (
    find_artifact,
    pulled_model,
    refuse_unknown,
    unpulled,
)
from turnmill.workers.engines.registry import REQUIREMENTS, resolve_engine_name

#: Engines that load the weights themselves.
_LOCAL = ("openvino", "transformers", "vllm")

#: What else an engine imports, beside the library of `REQUIREMENTS`; its extra brings them all.
_ALSO_NEEDED = {
    "openvino": ("gguf", "jinja2"),
    "tfserving": ("httpx", "jinja2"),
    "transformers": ("torch", "jinja2"),
    "vllm": ("jinja2",),
    "openai_http": ("anyio",),
}

#: One of them holds a checkpoint's vocabulary.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")

#: A checkpoint may hold its weights in several of these formats; one is loaded.
_WEIGHTS = (".safetensors", ".bin", ".gguf")

#: Without one of them there is no GPU for torch, which takes seconds to say so.
_GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True, slots=True)
class Findings:
    #: Sentences; the engine cannot start.
    problems: tuple[str, ...]
    #: Sentences; it may start.
    warnings: tuple[str, ...]


def examine(settings: EngineSettings) -> Findings:
    """Check engine, libraries and model, and return all that is wrong."""
    problems = []
    name = settings.name
    try:
        name = resolve_engine_name(_without_torch(settings))
    except TurnmillError as error:
        problems.append(error.message)
    problems += _missing_libraries(name)
    if name in (*_LOCAL, "auto"):
        problems += _model_problems(settings, name)
    warnings = () if problems or name not in _LOCAL else tuple(_memory_warnings(settings))
    return Findings(tuple(dict.fromkeys(problems)), warnings)


def refuse_unusable(settings: EngineSettings) -> tuple[str, ...]:
    """Return the warnings.

    Raises:
        SettingsError: the engine cannot start; with one line for each reason.
    """
    findings = examine(settings)
    if len(findings.problems) > 1:
        lines = [f"  {problem}" for problem in findings.problems]
        raise SettingsError("\n".join(["Nothing was started.", *lines]))
    if findings.problems:
        raise SettingsError(findings.problems[0])
    return findings.warnings


def _without_torch(settings: EngineSettings) -> EngineSettings:
    """Spare `auto` the import of torch where there is no GPU."""
    has_gpu = any(Path(each).exists() for each in _GPU_DEVICES)
    if settings.name == "auto" and settings.device == "auto" and not has_gpu:
        return settings.model_copy(update={"device": "cpu"})
    return settings


def _missing_libraries(name: str) -> list[str]:
    if name not in REQUIREMENTS or find_spec(REQUIREMENTS[name][0]) is None:
        return []
    missing = [each for each in _ALSO_NEEDED.get(name, ()) if find_spec(each) is None]
    if not missing:
        return []
    extra = REQUIREMENTS[name][1]
    return [f"The engine '{name}' lacks {', '.join(missing)}: pip install 'turnmill[{extra}]'."]


def _model_problems(settings: EngineSettings, engine: str) -> list[str]:
    try:
        return list(_examine_model(settings, engine))
    except TurnmillError as error:
        return [error.message]


def _examine_model(settings: EngineSettings, engine: str) -> Iterator[str]:
    """Look where `prepare_model` will look, in its order, and convert nothing."""
    path = Path(settings.model).expanduser()
    if find_artifact(settings) or (settings.model == DEFAULT_MODEL and not path.exists()):
        return
    if path.is_dir():
        yield from _folder_problems(path)
    elif path.suffix == ".gguf":
        if not path.is_file():
            raise SettingsError(f"There is no file {path}.")
        read_header(path)
    elif entry := find_model(settings.model):
        if not pulled_model(settings):
            raise unpulled(entry, "safetensors" if engine in ("transformers", "vllm") else "gguf")
    else:
        refuse_unknown(settings.model)
        if engine in ("transformers", "vllm"):
            reach(settings.model)


def _folder_problems(folder: Path) -> Iterator[str]:
    if (folder / "openvino_model.xml").exists():
        if not (folder / "openvino_model.bin").exists():
            yield f"{folder} has no openvino_model.bin."
        return
    if not (folder / "config.json").exists():
        files = sorted(folder.glob("*.gguf"))
        if len(files) != 1:
            yield f"{folder} holds neither a config.json nor exactly one .gguf file."
        else:
            read_header(files[0])
        return
    if not any((folder / name).exists() for name in _TOKENIZERS):
        yield f"{folder} has no tokenizer (tokenizer.json): copy it from the model's page."
    yield from _weight_problems(folder)


def _weight_problems(folder: Path) -> Iterator[str]:
    found = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    wanted = _indexed(folder)
    if missing := sorted(wanted - {path.name for path in found}):
        yield (
            f"{folder} lacks {len(missing)} of {len(wanted)} files of weights, {missing[0]} first: "
            "download it again, or resume its download."
        )
    elif not found:
        yield f"{folder} has a config.json and no weights (*.safetensors)."
    for path in found:
        if path.suffix == ".safetensors" and (size := _announced_size(path)) > path.stat().st_size:
            yield (
                f"{path} is truncated: it has {path.stat().st_size:,} of {size:,} bytes. Download "
                "it again."
            )


def _indexed(folder: Path) -> set[str]:
    """Return the files that the index of a checkpoint in several pieces names."""
    names: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names |= set(json.loads(index.read_text())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise SettingsError(f"{index} cannot be read: {error}") from error
    return names


def _announced_size(path: Path) -> int:
    """Return the size that the header of a safetensors file announces.

    https://huggingface.co/docs/safetensors/index#format
    """
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > path.stat().st_size:
                return int(8 + length)
            header = json.loads(file.read(length))
        ends = (each["data_offsets"][1] for key, each in header.items() if key != "__metadata__")
        return int(8 + length + max(ends, default=0))
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise SettingsError(f"{path} is not a readable safetensors file: {error}") from error


def _memory_warnings(settings: EngineSettings) -> Iterator[str]:
    size, memory = _weights_size(settings), machine_memory()
    if settings.device.startswith("cuda") or any(Path(each).exists() for each in _GPU_DEVICES):
        return
    if (needed := memory_needed(size)) > memory:
        yield (
            f"The model needs about {needed / 2**30:.1f} GiB of memory, and this machine has "
            f"{memory / 2**30:.1f} GiB: it may be killed while it loads. Smaller ones: turnmill "
            "models available."
        )


def _weights_size(settings: EngineSettings) -> int:
    path = Path(settings.model).expanduser()
    for found in (find_artifact(settings), *pulled_model(settings).values(), path):
        if found and found.is_file():
            return found.stat().st_size
        if found and found.is_dir():
            return max(_size_of(found, ending) for ending in _WEIGHTS)
    return 0


def _size_of(folder: Path, ending: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"*{ending}"))
