"""The type of a file by what it begins with. What its owner calls it is not believed.

Signatures: https://mimesniff.spec.whatwg.org/, section 6, and the formats' own specifications.
"""

#: Offset, bytes, type. The first that fits counts.
_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (8, b"WAVE", "audio/wav"),
    (0, b"OggS", "audio/ogg"),
    # Voices of WeCom and WeChat.
    (0, b"#!AMR", "audio/amr"),
    (0, b"fLaC", "audio/flac"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\x1aE\xdf\xa3", "audio/webm"),
    # ISO base media files name their brand; photos of iPhones are HEIC.
    (4, b"ftypheic", "image/heic"),
    (4, b"ftypheix", "image/heic"),
    (4, b"ftypmif1", "image/heif"),
    (4, b"ftypavif", "image/avif"),
    (4, b"ftyp", "audio/mp4"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"PK\x03\x04", "application/zip"),
    (0, b"PK\x05\x06", "application/zip"),
)
#: Types that begin with a frame of MPEG audio: 11 set bits, a version, layer III.
_MPEG_FRAMES = frozenset(b"\xfb\xfa\xf3\xf2\xe3\xe2")

_BINARY = "application/octet-stream"

#: Images and sounds that a message may have.
IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
SOUNDS = frozenset(
    {
        "audio/wav",
        "audio/ogg",
        "audio/flac",
        "audio/mpeg",
        "audio/webm",
        "audio/mp4",
        "audio/amr",
    }
)


def sniff(head: bytes) -> str:
    """Return the media type of a file that begins like this; at least 16 bytes where it has them.

    Text is `text/plain`, whatever its markup; what nothing fits is `application/octet-stream`.
    """
    for offset, signature, mime in _SIGNATURES:
        if head.startswith(signature, offset):
            return mime
    if head[:1] == b"\xff" and head[1:2] and head[1] in _MPEG_FRAMES:
        return "audio/mpeg"
    return "text/plain" if _is_text(head) else _BINARY


def _is_text(head: bytes) -> bool:
    """UTF-8 without control characters; the last character may be cut."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.reason != "unexpected end of data" or error.start < len(head) - 3:
            return False
        text = head[: error.start].decode()
    return not any(char < " " and char not in "\t\n\r\f\x1b" for char in text)


#: Of the end of a file, where an archive may have its directory.
TAIL_BYTES = 64 * 1024 + 22


def is_disguised(data: bytes) -> bool:
    """Whether an image or a sound is another kind of file as well (a polyglot).

    Readers of PDF look for their mark in the first 1,024 bytes, readers of ZIP at the end, browsers
    for markup at the beginning.
    """
    start = data[:1024].lower()
    marks = (b"%pdf-", b"<html", b"<script", b"<!doctype", b"<?php", b"<svg")
    return any(mark in start for mark in marks) or b"PK\x05\x06" in data[-TAIL_BYTES:]
