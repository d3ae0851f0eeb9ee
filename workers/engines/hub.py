"""Download a catalogued model from the Hugging Face hub, whole or not at all.

Files are fetched into a folder beside their place, resumed there after an interruption, checked
against the size and the checksum that the hub names, and the folder is renamed when all are right.
`hf_hub_download` is not used: it discards what it has when it is interrupted (huggingface_hub 2.4).
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from turnmill.schemas.errors import EngineFailure, EngineUnavailable, NotFound, SettingsError
from turnmill.workers.engines.catalogue import CatalogueModel, PullForm
from turnmill.workers.engines.hub_errors import endpoint, translated

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

#: In the folder of models.
FOLDER = "hub"

#: Written last, in the folder of a model that is complete.
RECORD = "pulled.json"

PARTIAL = ".partial"

#: Bytes that stay free on the disk.
_SPARE = 2**28

#: How often a file is asked for while the hub fails, and the seconds before the first repetition.
_TRIES, _PAUSE_S = 4, 1.0

#: Seconds within which the hub must answer.
_TIMEOUT_S = 10.0

#: What transformers and vLLM read of a repository, by the ends of names at its top.
_CHECKPOINT_ENDS = (".safetensors", ".json", ".model", ".txt", ".jinja")

#: Receives the bytes of a model that are there, and all of them.
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class HubFile:
    name: str
    size: int
    #: SHA-256 of a large file; of a small one the SHA-1 of its git blob.
    checksum: str


@dataclass(frozen=True, slots=True)
class Listing:
    repo: str
    #: The commit, so that all files are of one revision.
    revision: str
    files: tuple[HubFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


def pulled_path(model: CatalogueModel, form: PullForm, models_dir: Path) -> Path | None:
    """Return the GGUF file or the checkpoint's folder of a model that was pulled; None if not."""
    folder = _folder(model, form, models_dir)
    if not (folder / RECORD).exists():
        return None
    return folder / model.gguf_file if form == "gguf" else folder


def pull(model: CatalogueModel, form: PullForm, models_dir: Path, report: Report) -> Path:
    """Download a model, unless it is there, and return its path.

    An interrupted download is resumed by the next call.

    Raises:
        SettingsError: the network, a proxy, a token or the disk needs the user, or another process
            pulls the model.
        EngineUnavailable: the hub fails or breaks off; a later call may succeed.
        EngineFailure: the hub gave other bytes than it announced.
        NotFound: the hub has no such file.
    """
    folder = _folder(model, form, models_dir)
    with _alone(folder.parent):
        if path := pulled_path(model, form, models_dir):
            return path
        with translated(model.repo(form)):
            listing = _listing(model, form)
        partial = folder.with_name(folder.name + PARTIAL)
        _prepare(partial, listing)
        _fetch_all(listing, partial, report)
        (partial / RECORD).write_text(json.dumps(asdict(listing), indent=2))
        # What a removal that was interrupted left.
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    return folder / model.gguf_file if form == "gguf" else folder


def verify_pulled(model: CatalogueModel, models_dir: Path) -> int:
    """Check each file of a pulled model against its checksum, and return their number.

    Raises:
        NotFound: the model was not pulled.
        EngineFailure: a file is missing or changed.
    """
    records = sorted((models_dir.expanduser() / FOLDER / model.name).glob(f"*/{RECORD}"))
    if not records:
        raise NotFound(f"{model.name} is not on this machine: turnmill models pull {model.name}")
    found = [
        (record.with_name(each["name"]), HubFile(**each))
        for record in records
        if not record.parent.name.endswith(PARTIAL)
        for each in json.loads(record.read_text())["files"]
    ]
    for path, file in found:
        if not path.is_file() or _checksum(path, file) != file.checksum:
            raise EngineFailure(
                f"{path} is missing or not as it was downloaded. Run `turnmill models remove "
                f"{model.name}` and `turnmill models pull {model.name}`."
            )
    return len(found)


def remove_pulled(model: CatalogueModel, models_dir: Path) -> int:
    """Delete all that was downloaded of a model, partial downloads too, and return the bytes."""
    folder = models_dir.expanduser() / FOLDER / model.name
    if not folder.is_dir():
        raise NotFound(f"{model.name} is not on this machine.")
    with _alone(folder):
        size = folder_size(folder)
        # A removal that is interrupted must not leave what looks complete.
        for record in folder.glob(f"*/{RECORD}"):
            record.unlink()
        shutil.rmtree(folder)
    return size


def folder_size(folder: Path) -> int:
    """Add up the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def reach(repo: str) -> None:
    """Raise an error of ours for a repository that is neither cached here nor within reach."""
    with _no_folder(repo), translated(repo):
        from huggingface_hub import HfApi, try_to_load_from_cache

        if not isinstance(try_to_load_from_cache(repo, "config.json"), str):
            HfApi(endpoint=endpoint()).model_info(repo, timeout=_TIMEOUT_S / 2)


def fetch_repository(repo: str) -> Path:
    """Return the folder of all files of a repository, out of the cache where they are there.

    Raises:
        NotFound: the hub has none of this name.
        SettingsError: it cannot be reached, or wants a token.
        EngineUnavailable: the download broke off.
    """
    with _no_folder(repo), translated(repo):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repo, endpoint=endpoint()))


@contextmanager
def _no_folder(repo: str) -> Iterator[None]:
    """Most names that the hub does not give are paths with a slip of the pen."""
    try:
        yield
    except (NotFound, SettingsError, EngineUnavailable) as error:
        raise type(error)(
            f"There is no folder '{repo}' here. Of a model of this name: {error.message}"
        ) from error


def _folder(model: CatalogueModel, form: PullForm, models_dir: Path) -> Path:
    return models_dir.expanduser() / FOLDER / model.name / form


def _listing(model: CatalogueModel, form: PullForm) -> Listing:
    """Ask the hub for the files, their sizes and checksums.

    https://huggingface.co/docs/hub/api (`/api/models/{repo_id}/revision/{revision}?blobs=true`)
    """
    from huggingface_hub import HfApi

    repo = model.repo(form)
    info = HfApi(endpoint=endpoint()).model_info(
        repo, revision="main", files_metadata=True, timeout=_TIMEOUT_S
    )
    files = tuple(
        _file(each) for each in info.siblings or () if _is_wanted(each.rfilename, model, form)
    )
    if not files:
        raise NotFound(
            f"{endpoint()}/{repo} does not have {model.gguf_file if form == 'gguf' else 'weights'} "
            "any more: it was renamed or removed. Another model: turnmill models available."
        )
    return Listing(repo, info.sha or "main", files)


def _is_wanted(name: str, model: CatalogueModel, form: PullForm) -> bool:
    if form == "gguf":
        return name == model.gguf_file
    # Mistral's repositories hold the weights a second time, for its own library.
    return "/" not in name and name.endswith(_CHECKPOINT_ENDS) and "consolidated" not in name


def _file(sibling: "RepoSibling") -> HubFile:
    large = sibling.lfs
    size = large.size if large else sibling.size
    checksum = large.sha256 if large else sibling.blob_id
    if size is None or not checksum:
        raise EngineFailure(
            f"{endpoint()} names no size or checksum of {sibling.rfilename}, so that a download "
            "cannot be checked. Is HF_ENDPOINT a complete mirror of the hub?"
        )
    return HubFile(sibling.rfilename, size, checksum)


def _prepare(partial: Path, listing: Listing) -> None:
    """Delete files of another revision, and refuse a disk that is too small for the others."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        kept = {name for file in listing.files for name in (file.name, _part(partial, file).name)}
        for path in partial.iterdir():
            if path.name not in kept:
                path.unlink()
        missing = listing.size - folder_size(partial)
        free = shutil.disk_usage(partial).free
    except OSError as error:
        raise SettingsError(f"Models cannot be kept in {partial}: {error}") from error
    if missing + _SPARE > free:
        raise SettingsError(
            f"{listing.repo} needs {missing / 1e9:.1f} GB more in {partial}, and the disk has "
            f"{free / 1e9:.1f} GB free. Free some, or name another folder: "
            "TURNMILL_ENGINE__MODELS_DIR."
        )


def _fetch_all(listing: Listing, partial: Path, report: Report) -> None:
    done = 0
    for file in listing.files:
        before = done

        def report_file(there: int, before: int = before) -> None:
            report(before + there, listing.size)

        path = partial / file.name
        # An earlier pull may have fetched it of another revision.
        if not path.exists() or _checksum(path, file) != file.checksum:
            _fetch(listing, file, partial, report_file)
        done += file.size
        report(done, listing.size)


def _fetch(listing: Listing, file: HubFile, partial: Path, report: Callable[[int], None]) -> None:
    """Fetch one file; it gets its name when its bytes are right."""
    part = _part(partial, file)
    for attempt in range(1, _TRIES + 1):
        try:
            with translated(f"{listing.repo}/{file.name}"):
                _append(listing, file, part, report)
            break
        except EngineUnavailable:
            if attempt == _TRIES:
                raise
            time.sleep(_PAUSE_S * attempt)
    if _checksum(part, file) != file.checksum:
        part.unlink()
        raise EngineFailure(
            f"{file.name} came from {endpoint()} with other bytes than its checksum promises, and "
            "was deleted. A proxy or a mirror may have changed it: run the command again, or "
            "choose another HF_ENDPOINT."
        )
    part.replace(partial / file.name)


def _append(listing: Listing, file: HubFile, part: Path, report: Callable[[int], None]) -> None:
    """Fetch what a part lacks, with a Range header, and append it."""
    from turnmill.workers.vendor.huggingface import append

    if part.exists() and part.stat().st_size > file.size:
        part.unlink()
    with part.open("ab") as sink:
        append(
            sink,
            report,
            endpoint=endpoint(),
            repo=listing.repo,
            file=file.name,
            revision=listing.revision,
            size=file.size,
        )


def _part(partial: Path, file: HubFile) -> Path:
    """Name a part by its checksum: what a changed file had is not continued."""
    return partial / f"{file.name}.{file.checksum[:16]}.part"


def _checksum(path: Path, file: HubFile) -> str:
    is_sha256 = len(file.checksum) == 64
    digest = hashlib.sha256() if is_sha256 else hashlib.sha1(usedforsecurity=False)
    if not is_sha256:
        # https://git-scm.com/book/en/v2/Git-Internals-Git-Objects
        digest.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as source:
        while block := source.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a model; the kernel gives it back when the process dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SettingsError(f"Models cannot be kept in {folder}: {error}") from error
    try:
        _lock(lock, folder)
        yield
    finally:
        os.close(lock)


def _lock(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SettingsError(f"Another process pulls {folder.name} already.") from None
