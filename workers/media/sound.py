"""Decode what strangers recorded, in a process of its own: with limits on memory, CPU time and the
wall clock, and without the environment's secrets."""

import io
import resource
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from turnmill.schemas.errors import InvalidInput, PermanentError
from turnmill.schemas.process.isolated import Limits, isolated

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer

#: What speech models listen to: mono, samples a second.
SAMPLE_RATE = 16_000

#: Of the process that decodes. Five minutes of sound take it less than two seconds.
LIMITS = Limits(memory_bytes=2 * 1024**3, cpu_s=60, wait_s=120.0)


def decode(sound: bytes, max_s: float) -> bytes:
    """Decode a sound to signed 16-bit mono samples at 16 kHz.

    Raises:
        InvalidInput: it is damaged, has no sound, or is longer than `max_s`.
    """
    try:
        return isolated(_decode, sound, max_s, limits=LIMITS)
    except InvalidInput:
        raise
    except PermanentError:
        # The limits ended it, or a decoder broke.
        raise damaged() from None


def encode(samples: bytes, rate: int) -> bytes:
    """Encode signed 16-bit mono samples as Opus in OGG, at 24 kbit/s."""
    import av
    import numpy as np

    written = io.BytesIO()
    # Without it, the numbers of streams are random: the same samples are the same sound.
    exact = {"fflags": "+bitexact"}
    with av.open(written, mode="w", format="ogg", options=exact) as container:
        stream = container.add_stream("libopus", rate=48_000, layout="mono")
        stream.bit_rate = 24_000
        frame = av.AudioFrame.from_ndarray(
            np.frombuffer(samples, "<i2").reshape(1, -1), format="s16", layout="mono"
        )
        frame.sample_rate = rate
        resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000, frame_size=960)
        for piece in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(piece))
    return written.getvalue()


def damaged() -> InvalidInput:
    """Build the error for a sound that no decoder takes."""
    return InvalidInput(
        "The sound cannot be decoded: it is damaged or no speech.", param="messages"
    )


def _decode(sound: bytes, max_s: float) -> bytes:
    # Besides what `isolated` limits: FFmpeg maps memory of its own.
    resource.setrlimit(resource.RLIMIT_AS, (LIMITS.memory_bytes, LIMITS.memory_bytes))
    # Imported here: only this process loads FFmpeg.
    import av

    samples = bytearray()
    try:
        with av.open(io.BytesIO(sound), mode="r", metadata_errors="ignore") as container:
            resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            for frame in chain(_frames(container), (None,)):
                for piece in resampler.resample(frame):
                    samples += bytes(piece.planes[0])[: piece.samples * 2]
                if len(samples) > max_s * SAMPLE_RATE * 2:
                    raise InvalidInput(
                        f"The sound is longer than {max_s:g} s. Send a shorter one.",
                        param="messages",
                    )
    except (av.FFmpegError, IndexError, ValueError):
        raise damaged() from None
    if not samples:
        raise damaged()
    return bytes(samples)


def _frames(container: "InputContainer") -> "Iterator[AudioFrame]":
    yield from container.decode(audio=0)
