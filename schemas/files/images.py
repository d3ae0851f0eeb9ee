"""Images that strangers send: decoded within limits, and written anew.

What is written anew has nothing but pixels: no EXIF, no place where a photo was taken, no second
file behind the first.
"""

import io
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from turnmill.schemas.errors import InvalidInput
from turnmill.schemas.settings import MediaSettings

if TYPE_CHECKING:
    from PIL.Image import Image

#: The longest side that is stored. Models that see scale images to less.
MAX_SIDE = 2048
JPEG_QUALITY = 90

#: Of a whole process: one image at a time, for each may take 350 MB while it is decoded.
_decoding = Lock()


class CleanImage(NamedTuple):
    data: bytes
    mime: str


def clean_image(data: bytes, limits: MediaSettings) -> CleanImage:
    """Decode an image within the limits and write its pixels anew, upright, as PNG or JPEG.

    Raises:
        InvalidInput: it is damaged or too large, or nothing here reads images.
    """
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
                return _cleaned(image, limits.max_image_pixels)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise _too_many_pixels(limits.max_image_pixels) from None
        except InvalidInput:
            raise
        # Pillow's decoders raise whatever the damage leads to.
        except Exception as error:
            raise InvalidInput(
                f"The image cannot be decoded ({type(error).__name__}): it is damaged or cut off. "
                "Send it again as PNG or JPEG.",
                param="messages",
            ) from None


def _cleaned(image: "Image", max_pixels: int) -> CleanImage:
    from PIL import ImageOps

    width, height = image.size
    if width * height > max_pixels:
        raise _too_many_pixels(max_pixels)
    is_photo = image.format == "JPEG"
    # Decodes at a fraction of the size where that is enough.
    image.draft("RGB", (MAX_SIDE, MAX_SIDE))
    has_alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    pixels = ImageOps.exif_transpose(image).convert("RGBA" if has_alpha else "RGB")
    pixels.thumbnail((MAX_SIDE, MAX_SIDE))
    written = io.BytesIO()
    if is_photo or (image.format == "WEBP" and not has_alpha):
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
