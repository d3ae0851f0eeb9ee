"""The store of models: a folder of artifacts, and the record of which one was promoted when.

Workers whose setting `engine.model` is `promoted` serve the artifact that was promoted last.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from turnmill.compression.artifact import (
    PARTIAL,
    Manifest,
    interrupted,
    is_artifact,
    put_back,
    read_manifest,
    sync,
    unknown_here,
    verify,
    write_artifact,
)
from turnmill.schemas.errors import ArtifactRefused, InvalidInput, NotFound

#: Beside what the engines keep in the folder of models.
FOLDER = "artifacts"

#: One line for each promotion and rollback. A line is never changed or removed.
_RECORD = "promotions.jsonl"

#: The file that whoever changes a folder of the store holds locked.
LOCK = ".lock"


class Promotion(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["promote", "rollback"]
    artifact: str
    #: Of the artifact's manifest, so that another one of the same name is not served.
    checksum: str
    at: datetime
    #: The account that ran the command.
    by: str
    #: Whether limits were missed and `--force` given.
    forced: bool = False
    misses: tuple[str, ...] = ()


class ModelStore:
    def __init__(self, models_dir: Path) -> None:
        self.folder = models_dir.expanduser() / FOLDER
        #: One folder for each run of a recipe that is not finished.
        self.runs = self.folder / ".runs"

    def unfinished(self) -> list[Path]:
        """Return the folders of runs that nobody works on: interrupted ones, which may resume."""
        found = []
        for folder in sorted(self.runs.glob("*")):
            with suppress(OSError), (folder / LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.append(folder)
        return found

    def names(self) -> list[str]:
        if not self.folder.is_dir():
            return []
        self.mend()
        found = [path for path in self.folder.iterdir() if is_artifact(path)]
        return sorted(path.name for path in found if not path.name.endswith(PARTIAL))

    def path(self, name: str) -> Path:
        """Return the folder of the artifact.

        Raises:
            NotFound: the store has none of this name.
        """
        check_name(name)
        self.mend()
        if not is_artifact(self.folder / name):
            known = ", ".join(self.names()) or "none"
            raise NotFound(f"There is no artifact '{name}' in {self.folder}. There is: {known}.")
        return self.folder / name

    def manifest(self, name: str) -> Manifest:
        return read_manifest(self.path(name))

    def replace(self, before: Manifest, fill: Callable[[Path], None], after: Manifest) -> Manifest:
        """Write another artifact in place of the one with the manifest `before`.

        Raises:
            InvalidInput: it is promoted, or no longer the one in the store.
        """
        with self._locked():
            now = self.manifest(before.name).checksum
            if now != before.checksum or self.was_promoted(before):
                raise InvalidInput(
                    f"Another process has promoted or replaced '{before.name}'. Run the command "
                    "again, or choose another --name.",
                    param="name",
                )
            return write_artifact(self.path(before.name), fill, after, replace=True)

    def mend(self) -> None:
        """Put back artifacts whose replacement was killed between its two renames.

        Where the store cannot be written to, as workers may find it, they stay aside.
        """
        if interrupted(self.folder):
            with suppress(OSError), self._locked():
                pass

    def promote(self, name: str, *, by: str, force: bool = False) -> Promotion:
        """Verify the artifact and make it the promoted one.

        Raises:
            ArtifactRefused: it is damaged, or misses its recipe's limits and `force` is False.
        """
        manifest = verify(self.path(name))
        if manifest.unmet and not force:
            remedy = "Improve the recipe"
            if manifest.report is None:
                remedy = "Measure it: repeat its compression without --no-evaluate"
            raise ArtifactRefused(
                f"'{name}' misses the limits of its recipe: {' '.join(manifest.unmet)} "
                f"{remedy}, or promote it with --force, which is recorded."
            )
        promotion = Promotion(
            action="promote",
            artifact=name,
            checksum=manifest.checksum,
            at=datetime.now(UTC),
            by=by,
            forced=bool(manifest.unmet),
            misses=manifest.unmet,
        )
        with self._locked():
            self._append(promotion)
        return promotion

    def rollback(self, *, by: str) -> Promotion:
        """Make the artifact the promoted one that was it before the last promotion.

        Raises:
            NotFound: there was none before.
            ArtifactRefused: it is damaged or is another one now.
        """
        with self._locked():
            standing = self._standing()
            if len(standing) < 2:
                raise NotFound("No artifact was promoted before this one: nothing to roll back to.")
            before = standing[-2].artifact
            if not is_artifact(self.folder / before):
                raise NotFound(
                    f"'{before}', which was promoted before this one, was removed. Promote another "
                    "one."
                )
            verify(self._path_of(standing[-2]))
            rollback = standing[-2].model_copy(
                update={"action": "rollback", "at": datetime.now(UTC), "by": by}
            )
            self._append(rollback)
        return rollback

    def remove(self, name: str, *, force: bool = False) -> None:
        """Delete the artifact.

        Raises:
            NotFound: the store has none of this name.
            InvalidInput: it is promoted, or a rollback returns to it and `force` is False.
        """
        with self._locked():
            folder = self.path(name)
            *_, before, promoted = [None, None, *(each.artifact for each in self._standing())]
            if name == promoted:
                raise InvalidInput(f"{name} is promoted. Promote another artifact first.")
            if name == before and not force:
                raise InvalidInput(
                    f"A rollback returns to {name}. Remove it all the same with --force."
                )
            shutil.rmtree(folder)

    def promoted(self) -> Promotion | None:
        standing = self._standing()
        return standing[-1] if standing else None

    def was_promoted(self, manifest: Manifest) -> bool:
        """Tell whether the artifact is promoted, or a rollback may return to it."""
        return any(each.checksum == manifest.checksum for each in self._standing())

    def promoted_path(self) -> Path:
        """Return the folder of the promoted artifact, unverified.

        Raises:
            NotFound: none is promoted.
            ArtifactRefused: the artifact of this name is another one now.
        """
        promotion = self.promoted()
        if promotion is None:
            raise NotFound(
                f"No artifact in {self.folder} is promoted. Run: turnmill models promote NAME"
            )
        return self._path_of(promotion)

    def history(self) -> list[Promotion]:
        """Return the whole record, oldest first.

        Raises:
            ArtifactRefused: naming the line that is none of a promotion.
        """
        found = []
        for number, line in enumerate(self._lines(), 1):
            try:
                found.append(Promotion.model_validate_json(line))
            except ValidationError as error:
                if unknown := unknown_here(error):
                    raise ArtifactRefused(
                        f"A newer release of Turnmill wrote line {number} of "
                        f"{self.folder / _RECORD}: this one does not know its {unknown}. Upgrade "
                        "Turnmill here."
                    ) from error
                raise ArtifactRefused(
                    f"{self.folder / _RECORD} is damaged in line {number}. Correct or remove "
                    "that line."
                ) from error
        return found

    def _lines(self) -> list[str]:
        """Return the record's lines, without a last one that a full disk cut short."""
        try:
            text = (self.folder / _RECORD).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        lines = text.splitlines()
        # Releases that appended to the record could leave a beginning of a line; an editor may
        # leave a whole one without its end.
        if lines and not text.endswith("\n") and not lines[-1].endswith("}"):
            lines.pop()
        return lines

    def _standing(self) -> list[Promotion]:
        """Promotions that no rollback has taken back, oldest first."""
        standing: list[Promotion] = []
        for each in self.history():
            if each.action == "rollback":
                del standing[-1:]
            # What is promoted again takes no place of its own: a rollback would change nothing.
            # A person may have removed a damaged line; what a rollback names is promoted anyway.
            now = (each.artifact, each.checksum)
            if not standing or (standing[-1].artifact, standing[-1].checksum) != now:
                standing.append(each)
        return standing

    def _path_of(self, promotion: Promotion) -> Path:
        if self.manifest(promotion.artifact).checksum != promotion.checksum:
            raise ArtifactRefused(
                f"The artifact '{promotion.artifact}' is not the one that was promoted: its "
                f"checksum is another. Promote it again: turnmill models promote "
                f"{promotion.artifact}"
            )
        return self.path(promotion.artifact)

    def _append(self, promotion: Promotion) -> None:
        """Write the record anew with this line; a disk that is full leaves it as it was."""
        record = self.folder / _RECORD
        lines = [*self._lines(), promotion.model_dump_json()]
        part = record.with_name(_RECORD + PARTIAL)
        try:
            with part.open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
            part.replace(record)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        sync(self.folder)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who replaces an artifact holds the lock: those of these are dead.
            for target in interrupted(self.folder):
                put_back(target)
            yield


def check_name(name: str) -> None:
    """Raises `InvalidInput` unless the name can be that of a folder in the store."""
    allowed = name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    if not allowed or name.startswith(".") or name.endswith(PARTIAL) or name == "promoted":
        raise InvalidInput(
            f"'{name}' cannot name an artifact: use letters, digits, '-', '_' and '.', and not "
            "'promoted'.",
            param="name",
        )
