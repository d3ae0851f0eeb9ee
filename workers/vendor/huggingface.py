"""Holds on huggingface_hub: its download of one file, which resumes, and the size of its blocks.

The public `hf_hub_download` begins anew when it was interrupted.
"""

from collections.abc import Callable
from typing import IO, Any

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, logging

READ_IN = {"huggingface_hub": "2.4.0"}
HOLDS = {"huggingface_hub.file_download:http_get": "ed21d11826bb"}

#: Bytes that are written at once. The library's 10 MB are lost with a connection, and take minutes
#: without a sign of life on a slow line.
_CHUNK = 2**16


def append(
    sink: IO[bytes],
    report: Callable[[int], None],
    *,
    endpoint: str,
    repo: str,
    file: str,
    revision: str,
    size: int,
) -> None:
    """Fetch what a file opened for appending lacks; `report` receives its size at each write."""
    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK
    disable_progress_bars()
    logging.set_verbosity_error()
    http_get(
        hf_hub_url(repo, file, revision=revision, endpoint=endpoint),
        _Counted(sink, report),
        resume_size=sink.tell(),
        # Compressed bytes cannot be resumed.
        headers={**build_hf_headers(), "Accept-Encoding": "identity"},
        expected_size=size,
    )


class _Counted:
    """A file that reports its size at each write."""

    def __init__(self, file: IO[bytes], report: Callable[[int], None]) -> None:
        self._file = file
        self._report = report

    def write(self, data: bytes) -> int:
        count = self._file.write(data)
        self._report(self._file.tell())
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
