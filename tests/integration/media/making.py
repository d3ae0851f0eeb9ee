"""Images and sounds for tests, made where they are needed."""

import base64
import ctypes
import io
import struct
import wave
import zlib
from typing import Any

from PIL import Image, ImageDraw, ImageFont


def photographed(*lines: str, **save: Any) -> bytes:
    """A picture of a ticket: dark text on a light ground, as PNG."""
    image = Image.new("RGB", (900, 90 * len(lines) + 60), "#f4f4ee")
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((30, 30 + 90 * number), line, fill="#202020", font=ImageFont.load_default(34))
    return saved(image, **save)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as a file."""
    written = io.BytesIO()
    image.save(written, kind, **options)
    return written.getvalue()


def bomb(side: int = 30_000) -> bytes:
    """A PNG of a few kilobytes that says it has `side` x `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * 64), 9)
    chunks = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def tone(seconds: float = 0.5) -> bytes:
    """A WAV without speech."""
    return _wav(bytes(int(seconds * 16_000) * 2), 16_000)


def spoken(text: str, voice: str = "en-us") -> bytes:
    """A WAV in which espeak-ng says the text. Needs the package `espeakng-loader`."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    samples = bytearray()

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def collect(piece: Any, count: int, _: Any) -> int:
        if piece and count:
            samples.extend(ctypes.string_at(piece, count * 2))
        return 0

    # Synchronous output, https://github.com/espeak-ng/espeak-ng, `speak_lib.h`.
    rate = library.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0)
    library.espeak_SetSynthCallback(collect)
    library.espeak_SetVoiceByName(voice.encode())
    library.espeak_SetParameter(1, 140, 0)
    said = text.encode()
    library.espeak_Synth(said, len(said) + 1, 0, 1, 0, 1, None, None)
    library.espeak_Synchronize()
    return _wav(bytes(samples), rate)


def as_amr(sound: bytes) -> bytes:
    """The sound as WeCom and WeChat record it. Needs the package `av`."""
    import av

    written = io.BytesIO()
    with av.open(io.BytesIO(sound)) as source, av.open(written, "w", format="amr") as target:
        stream = target.add_stream("libopencore_amrnb", rate=8_000, layout="mono")
        resampler = av.AudioResampler(format="s16", layout="mono", rate=8_000, frame_size=160)
        for frame in (*source.decode(audio=0), None):
            for piece in resampler.resample(frame):
                target.mux(stream.encode(piece))
        target.mux(stream.encode(None))
    return written.getvalue()


def _wav(samples: bytes, rate: int) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples)
    return written.getvalue()


def data_url(data: bytes, mime: str = "image/png") -> str:
    """The file as a `data:` URL (RFC 2397)."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes) -> dict[str, Any]:
    """A part of a chat completion with an image."""
    return {"type": "image_url", "image_url": {"url": data_url(data)}}


def audio_part(data: bytes) -> dict[str, Any]:
    """A part of a chat completion with a sound."""
    encoded = base64.b64encode(data).decode()
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}}
