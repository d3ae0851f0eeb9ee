"""Images that strangers send: decoded within limits, and written anew.

What is written anew has nothing but pixels: no EXIF, no place where a photo was taken, no second
file behind the first.
"""

import io
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.settings import MediaSettings

if TYPE_CHECKING:
    from PIL.Image import Image

#: The longest side that is stored. Models that see scale images to less.
MAX_SIDE = 2048
JPEG_QUALITY = 90

#: Of a whole process: one image at a time, for each may take 350 MB while it is decoded.
_decoding = Lock()


Made = TypeVar("Made")


class CleanImage(NamedTuple):
    data: bytes
    mime: str


def clean_image(data: bytes, limits: MediaSettings) -> CleanImage:
    """Decode an image within the limits and write its pixels anew, upright, as PNG or JPEG.

    Raises:
        InvalidInput: it is damaged or too large, or nothing here reads images.
    """
    return _opened(data, limits.max_image_pixels, _cleaned)


def read_pixels(data: bytes, max_pixels: int) -> "Image":
    """Decode a stored image, as RGB or RGBA. One of more than `max_pixels` is scaled down.

    Raises:
        InvalidInput: it is damaged, or larger than what is stored, or nothing here reads images.
    """

    def scaled(image: "Image") -> "Image":
        share = min(1.0, (max_pixels / (image.width * image.height)) ** 0.5)
        # A side has at least one pixel: the other one then has them all.
        width, height = (
            min(int(side * share) or 1, max_pixels) for side in (image.width, image.height)
        )
        return _pixels(image, (width, height))

    return _opened(data, MAX_SIDE**2, scaled)


def _opened(data: bytes, max_pixels: int, use: "Callable[[Image], Made]") -> Made:
    """Return what `use` makes of an image of at most `max_pixels`. Raises `InvalidInput`."""
    try:
        from PIL import Image
    except ImportError:
        raise InvalidInput(
            "Images are not supported: this installation lacks Pillow "
            "(pip install 'turnmill[vision]').",
            param="messages",
        ) from None
    with _decoding:
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "GIF", "WEBP")) as image:
                if image.width * image.height > max_pixels:
                    raise _too_many_pixels(max_pixels)
                return use(image)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise _too_many_pixels(max_pixels) from None
        except InvalidInput:
            raise
        # Pillow's decoders raise whatever the damage leads to.
        except Exception as error:
            raise InvalidInput(
                f"The image cannot be decoded ({type(error).__name__}): it is damaged or cut off. "
                "Send it again as PNG or JPEG.",
                param="messages",
            ) from None


def _pixels(image: "Image", size: tuple[int, int]) -> "Image":
    """The image upright, as RGB or RGBA, scaled down to fit into `size`."""
    from PIL import ImageOps

    # Decodes at a fraction of the size where that is enough.
    image.draft("RGB", size)
    has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    pixels = ImageOps.exif_transpose(image).convert("RGBA" if has_alpha else "RGB")
    pixels.thumbnail(size)
    return pixels


def _cleaned(image: "Image") -> CleanImage:
    kind, pixels = image.format, _pixels(image, (MAX_SIDE, MAX_SIDE))
    written = io.BytesIO()
    if kind == "JPEG" or (kind == "WEBP" and pixels.mode == "RGB"):
        pixels.save(written, "JPEG", quality=JPEG_QUALITY)
        return CleanImage(written.getvalue(), "image/jpeg")
    # Only the pixels: `info` may have texts.
    pixels.info = {}
    pixels.save(written, "PNG")
    return CleanImage(written.getvalue(), "image/png")


def _too_many_pixels(most: int) -> InvalidInput:
    return InvalidInput(
        f"The image has more than {most:,} pixels. Send a smaller one.", param="messages"
    )
