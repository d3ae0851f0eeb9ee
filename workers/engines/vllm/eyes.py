"""How a model in vLLM sees: images become a prompt's own tokens before vLLM gets the prompt.

So they count before the turn is submitted, and vLLM's loop never waits for an image. What vLLM
remembers of an image (its embedding, its KV-cache blocks) has an id in which the prompt's namespace
and the image's length stand: no tenant finds what another one's image left. vLLM's own cache of
prepared images is off, since it knows no namespaces.
"""

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from turnmill.schemas.errors import EngineBrokeOff, EngineFailure, InvalidInput
from turnmill.schemas.files.images import read_pixels
from turnmill.workers.engines.local.seeing import Seen
from turnmill.workers.vendor.vllm_images import image_lengths, image_limit, image_mark
from vllm.inputs import MultiModalInput, TokensPrompt
from vllm.renderers import TokenizeParams
from vllm.v1.engine.async_llm import AsyncLLM

#: Images whose tokens are counted without another look at them.
REMEMBERED_IMAGES = 4096

#: The prompt is cut nowhere; the engine itself judges its length.
_WHOLE = TokenizeParams(max_total_tokens=None)


class VLLMEyes:
    """The processor of a checkpoint that sees; one prompt at a time goes through it."""

    def __init__(self, llm: AsyncLLM, max_pixels: int) -> None:
        """`max_pixels`: larger images are scaled down."""
        self.limit = image_limit(llm)
        self._llm = llm
        self._max_pixels = max_pixels
        self._lock = Lock()
        #: Tokens that an image adds, by its id and how many images its prompt has: some models
        #: look at several images less closely.
        self._added: OrderedDict[tuple[str, int], int] = OrderedDict()

    def mark(self, number: int) -> str | None:
        return image_mark(self._llm, number)

    def count(self, prompt_ids: Sequence[int], images: Sequence[str], namespace: str) -> int:
        added = [self._added.get((_id(image, namespace), len(images))) for image in images]
        known = [count for count in added if count is not None]
        if len(known) < len(images):
            return len(self.look(prompt_ids, images, namespace).prompt_ids)
        return len(prompt_ids) + sum(known)

    def look(self, prompt_ids: Sequence[int], images: Sequence[str], namespace: str) -> Seen:
        ids = [_id(image, namespace) for image in images]
        prompt = TokensPrompt(
            prompt_token_ids=list(prompt_ids),
            multi_modal_data={"image": [self._pixels(image) for image in images]},
            multi_modal_uuids={"image": ids},
        )
        if namespace:
            prompt["cache_salt"] = namespace
        with self._lock:
            inputs = self._rendered(prompt)
            lengths = image_lengths(inputs)
            self._remember(ids, lengths, len(inputs["prompt_token_ids"]) - len(prompt_ids))
        # Known only now, and part of what vLLM's caches tell apart: among several images, some
        # models look at one less closely.
        inputs["mm_hashes"]["image"] = [
            f"{id}-{length}" for id, length in zip(ids, lengths, strict=True)
        ]
        return Seen(inputs["prompt_token_ids"], inputs)

    def _pixels(self, image: str) -> object:
        try:
            data = base64.b64decode(image.partition(";base64,")[2], validate=True)
        except ValueError:
            data = b""  # refused as what it is: no image
        return read_pixels(data, self._max_pixels)

    def _rendered(self, prompt: TokensPrompt) -> MultiModalInput:
        try:
            [inputs] = self._llm.renderer.render_cmpl([prompt], _WHOLE)
        except MemoryError as error:
            raise EngineBrokeOff("Memory ran out while an image was prepared.") from error
        except ValueError as error:  # of the checkpoint's own processor, or of vLLM
            raise InvalidInput(
                f"The model cannot read the images ({error.__cause__ or error}). Send other "
                "images, or leave them out.",
                param="messages",
            ) from error
        except Exception as error:
            raise EngineFailure(f"The images cannot be put into the prompt: {error}") from error
        return inputs

    def _remember(self, ids: Sequence[str], lengths: Sequence[int], added: int) -> None:
        """`lengths`: tokens of each image; `added`: of all, beyond their marks."""
        mark_length, rest = divmod(sum(lengths) - added, len(ids))
        if rest:  # marks of several lengths: the next prompt is looked at again
            return
        for id, length in zip(ids, lengths, strict=True):
            self._added[id, len(ids)] = length - mark_length
        while len(self._added) > REMEMBERED_IMAGES:
            self._added.popitem(last=False)


def _id(image: str, namespace: str) -> str:
    """The same for the same image of the same namespace only."""
    return hashlib.sha256(f"{namespace}\0{image}".encode()).hexdigest()
