"""Artifacts: folders of compressed models, each with a manifest of its files and its making.

Workers verify an artifact before an engine loads it, so nothing here imports torch.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from turnmill.schemas.errors import ArtifactRefused

MANIFEST = "artifact.json"

#: The end of the name of what is still being written.
PARTIAL = ".partial"

#: The end of the name of what is being replaced.
_BEFORE = ".before" + PARTIAL


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseModelRecord(_Part):
    """The model that was compressed."""

    name: str
    #: Of its files, see `digest_of`.
    sha256: str


class StepRecord(_Part):
    kind: str
    #: What the step tells of its work.
    told: dict[str, object]


class Manifest(_Part):
    version: Literal[1] = 1
    name: str
    base: BaseModelRecord
    recipe: dict[str, object]
    #: Of the windows that calibrated and trained.
    data_sha256: str
    #: SHA-256 of what else decided, by what it is: held-out text, prose, students' checkpoints.
    #: Empty in manifests of releases that did not record it.
    inputs: dict[str, str] = {}
    #: How the linear layers are saved: `dense`, `int8`, `int4`, `w8a8`, `bnb-int8`, `bnb-nf4`.
    format: str
    versions: dict[str, str]
    steps: tuple[StepRecord, ...] = ()
    #: What the evaluation measured; None if it was left out.
    report: dict[str, object] | None = None
    #: A sentence for each limit of the recipe that the artifact misses.
    misses: tuple[str, ...] = ()
    #: SHA-256 of every file, by its path inside the folder.
    files: dict[str, str]
    #: SHA-256 of all of the above as canonical JSON.
    checksum: str = ""

    def sealed(self) -> Self:
        """Return the manifest with its checksum."""
        return self.model_copy(update={"checksum": self._checksum()})

    @property
    def unmet(self) -> tuple[str, ...]:
        """Return a sentence for each reason why only force promotes the artifact.

        Limits that nobody measured count as missed.
        """
        if self.report is None and self.recipe.get("limits"):
            return (*self.misses, "The limits of the recipe were not measured.")
        return self.misses

    @property
    def is_sealed(self) -> bool:
        return self.checksum == self._checksum()

    def _checksum(self) -> str:
        # Nor do inputs count where there are none: they had no key when such a one was sealed.
        left_out = {"checksum"} if self.inputs else {"checksum", "inputs"}
        return digest_of_json(self.model_dump(mode="json", exclude=left_out))


def digest_of_json(value: object) -> str:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's file names and their digests."""
    if path.is_dir():
        return digest_of_json(_digests(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_artifact(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def write_artifact(
    target: Path, fill: Callable[[Path], None], manifest: Manifest, *, replace: bool = False
) -> Manifest:
    """Write an artifact aside, rename it to `target` and return its sealed manifest.

    `fill` puts the files into a folder. The files of `manifest` are taken from what it wrote.
    A process that is killed leaves no half-written `target`. With `replace`, the artifact that
    stands there gives way once the new one is on disk. If the process is killed between the two
    renames, `put_back` returns the old artifact.
    """
    put_back(target)
    partial = target.with_name(target.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    sealed = manifest.model_copy(update={"files": _digests(partial)}).sealed()
    text = sealed.model_dump_json(indent=2) + "\n"
    (partial / MANIFEST).write_text(text, encoding="utf-8")
    # safetensors gives its files to their owner alone; workers may run under another account.
    mode = (partial / MANIFEST).stat().st_mode
    for path in partial.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    if replace:
        shutil.rmtree(_before(target), ignore_errors=True)
        target.rename(_before(target))
    try:
        partial.rename(target)
    except BaseException:
        put_back(target)
        raise
    sync(target.parent)
    shutil.rmtree(_before(target), ignore_errors=True)
    return sealed


def put_back(target: Path) -> None:
    """Return the artifact that a process moved aside and was killed before it replaced it."""
    if _before(target).exists() and not target.exists():
        _before(target).rename(target)


def interrupted(folder: Path) -> list[Path]:
    """Return the artifacts of the folder that only `put_back` returns."""
    asides = folder.glob(f".*{_BEFORE}")
    found = [path.with_name(path.name[1:].removesuffix(_BEFORE)) for path in asides]
    return [path for path in found if not path.exists()]


def _before(target: Path) -> Path:
    """What stands at `target` while it is replaced. No artifact's name begins with a dot."""
    return target.with_name(f".{target.name}{_BEFORE}")


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest without looking at the files that it lists.

    Raises:
        ArtifactRefused: there is none, it is not Turnmill's, or it was changed.
    """
    path = folder / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ArtifactRefused(
            f"{folder} is no artifact of Turnmill: it has no {MANIFEST}."
        ) from error
    except (OSError, ValidationError) as error:
        if isinstance(error, ValidationError) and (unknown := unknown_here(error)):
            raise ArtifactRefused(
                f"{path} was written by a newer release of Turnmill: this one does not know its "
                f"{unknown}. Upgrade Turnmill here, or compress the model with this release."
            ) from error
        raise ArtifactRefused(
            f"{path} cannot be read as an artifact's manifest: it is damaged. Compress the model "
            "again, or restore the folder from a copy."
        ) from error
    if not manifest.is_sealed:
        raise ArtifactRefused(
            f"{path} was changed after it was written: its checksum does not match. "
            "Compress the model again, or restore the folder from a copy."
        )
    return manifest


def unknown_here(error: ValidationError) -> str | None:
    """Name what only a newer release writes into a record; None: the record is damaged."""
    found = error.errors(include_url=False, include_context=False)
    for each in found:
        if each["loc"] == ("version",) and isinstance(each["input"], int):
            return f"version {each['input']}"
    if not all(each["type"] == "extra_forbidden" for each in found):
        return None
    names = [".".join(map(str, each["loc"])) for each in found]
    return f"field{'s' * (len(names) > 1)} {', '.join(names[:3])}"


def verify(folder: Path) -> Manifest:
    """Check every file of an artifact against its manifest, and return the manifest.

    Raises:
        ArtifactRefused: a file is missing, changed, or not listed.
    """
    manifest = read_manifest(folder)
    for name in manifest.files:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ArtifactRefused(f"{folder}: its manifest lists '{name}', outside its folder.")
    try:
        found = _digests(folder)
    except PermissionError as error:
        raise ArtifactRefused(
            f"{error.filename} cannot be read by this account. Allow it: chmod -R a+rX {folder}"
        ) from error
    found.pop(MANIFEST, None)
    faults = {
        "missing": manifest.files.keys() - found.keys(),
        "not listed in its manifest": found.keys() - manifest.files.keys(),
        "changed": {
            name
            for name in manifest.files.keys() & found.keys()
            if manifest.files[name] != found[name]
        },
    }
    said = [f"{', '.join(sorted(names))} ({what})" for what, names in faults.items() if names]
    if said:
        raise ArtifactRefused(
            f"The artifact {folder} is damaged: {'; '.join(said)}. "
            "Compress the model again, or restore the folder from a copy."
        )
    return manifest


def _digests(folder: Path) -> dict[str, str]:
    """Links are followed: what an engine would read counts."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_of(path) for path in files}


def sync(path: Path) -> None:
    """Have the disk keep a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
