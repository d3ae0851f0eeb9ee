"""Teacher logits, computed once and kept on disk: the teacher costs half of each step otherwise.

Per position only the `k` likeliest tokens are kept, with the probability of all others together:
6 k + 4 bytes in place of 4 · vocabulary.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from turnmill.compression.distill.losses import TopProbabilities, top_probabilities
from turnmill.compression.step import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: Windows the teacher reads at once. Part of the result: batching changes the last bits.
_BATCH = 8
_MARK = "cache.json"


@dataclass(frozen=True)
class _Layout:
    """What a cache on disk was made for; another one's rows are not used."""

    data: str
    rows: int
    positions: int
    k: int
    temperature: float


def bytes_per_window(length: int, k: int) -> int:
    """Return the disk space that one window takes."""
    return (length - 1) * (6 * k + 4)


class TeacherCache:
    """The teacher's softened next-token probabilities for windows of tokens."""

    def __init__(self, folder: Path, layout: _Layout) -> None:
        self._folder, self._layout = folder, layout
        shape = (layout.rows, layout.positions, layout.k)
        self._values = self._array("values", "<f2", shape)
        self._indices = self._array("indices", "<i4", shape)
        self._rest = self._array("rest", "<f4", shape[:2])

    def __getitem__(self, rows: Tensor) -> TopProbabilities:
        """Return the probabilities of these windows, `[rows, length - 1, k]`."""
        picked = rows.numpy()
        return TopProbabilities(
            torch.from_numpy(self._values[picked].astype(np.float32)),
            torch.from_numpy(self._indices[picked].astype(np.int64)),
            torch.from_numpy(self._rest[picked].astype(np.float32)),
        )

    def _array(
        self, name: str, kind: str, shape: tuple[int, ...]
    ) -> np.memmap[tuple[int, ...], np.dtype[np.generic]]:
        path = self._folder / name
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        if not path.exists() or path.stat().st_size != size:
            try:
                with path.open("wb") as file:
                    # Blocks, not a hole: a full disk kills the process that fills one.
                    os.posix_fallocate(file.fileno(), 0, size)
            except OSError:
                path.unlink(missing_ok=True)
                raise
        return np.memmap(path, dtype=kind, mode="r+", shape=shape)

    def store(self, start: int, found: TopProbabilities) -> None:
        rows = slice(start, start + len(found.values))
        self._values[rows] = found.values.numpy()
        self._indices[rows] = found.indices.numpy()
        self._rest[rows] = found.rest.numpy()

    def note_finished(self, rows: int) -> None:
        """Record that the first `rows` windows are on disk."""
        for array in (self._values, self._indices, self._rest):
            array.flush()
        aside = self._folder / f"{_MARK}.partial"
        aside.write_text(json.dumps({"layout": vars(self._layout), "finished": rows}))
        aside.replace(self._folder / _MARK)

    def finished(self) -> int:
        """Return how many windows an earlier run has stored."""
        mark = self._folder / _MARK
        if not mark.exists():
            return 0
        found = json.loads(mark.read_text())
        return int(found["finished"]) if found["layout"] == vars(self._layout) else 0


@torch.no_grad()  # type: ignore[untyped-decorator]
def cache_teacher(
    load: "Callable[[], PreTrainedModel]",
    windows: Tensor,
    folder: Path,
    progress: Progress,
    *,
    k: int,
    temperature: float,
    data: str,
    vocabulary: int | None = None,
) -> TeacherCache:
    """Run the teacher over the windows, unless an earlier run did, and return its cache.

    Args:
        load: loads the teacher; not called if all windows are on disk.
        windows: token ids, int64 `[n, length]`.
        data: names teacher and windows, so that a cache of others is not used.
        vocabulary: of the student. Models of one family pad theirs to other sizes, with tokens that
            nobody writes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout = _Layout(data, len(windows), windows.shape[1] - 1, k, temperature)
    cache = TeacherCache(folder, layout)
    finished = cache.finished()
    if finished < len(windows):
        progress.start(len(windows), "teacher")
        progress.advance(finished)
        teacher = load().eval()
        for start in range(finished, len(windows), _BATCH):
            batch = windows[start : start + _BATCH]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = teacher(input_ids=batch, use_cache=False).logits
            cache.store(
                start, top_probabilities(logits[:, :-1, :vocabulary].float(), k, temperature)
            )
            cache.note_finished(start + len(batch))
            progress.advance(len(batch))
    return cache
