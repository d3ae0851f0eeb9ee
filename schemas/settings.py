"""Configuration: one typed class, read once when a process starts.

Sources, strongest first: arguments, `TURNMILL_*` environment variables (sections
nested with `__`, as in `TURNMILL_DATABASE__URL`), the file that a running embedded stack
leaves in its data folder, defaults. A misspelt variable is an error, not a default.
"""

import difflib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from turnmill.schemas.errors import SettingsError
from turnmill.schemas.observability.masking import masked_urls, masked_within
from turnmill.schemas.surroundings import (
    PREFIX,
    home,
    refuse_unreadable_credentials,
    without_strangers,
)
from turnmill.schemas.turns import Lane
from turnmill.schemas.urls import AMQP, SENTINEL, check_broker_url, check_database_url, check_origin

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_TENANT = "default"

#: Written by the embedded stack into its data folder, mode 0600.
STACK_FILE = "stack.json"


class SecretUrl(SecretStr):
    """A URL, or several joined with `;`, shown without its login; `get_secret_value` has all."""

    def _display(self) -> str:
        return masked_urls(self.get_secret_value())


def _checked(check: Callable[[str], str]) -> AfterValidator:
    return AfterValidator(lambda url: SecretUrl(check(url.get_secret_value())))


class Section(BaseModel):
    """Settings that belong together. Neither their `repr` nor an error shows a password."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Mask URLs in settings that are no URLs, too."""
        for name, value in super().__repr_args__():
            yield name, masked_within(value)


DatabaseURL = Annotated[SecretUrl, _checked(check_database_url)]
BrokerURL = Annotated[SecretUrl, _checked(check_broker_url)]
Origin = Annotated[str, AfterValidator(check_origin)]


class DatabaseSettings(Section):
    #: libpq URL, `postgresql://user:password@host[,host2]:5432/name?target_session_attrs=read-write`.
    url: DatabaseURL = SecretUrl("postgresql://turnmill@127.0.0.1:5432/turnmill")
    #: The same database without its pooler, where `url` leads through one in transaction mode
    #: (PgBouncer, Supavisor, …): for LISTEN, advisory locks and migrations. `url` when left out.
    direct_url: DatabaseURL | None = None
    #: Connections a process keeps, at most.
    pool_size: int = Field(default=16, ge=1, le=1000)
    #: How long one attempt to connect may take.
    connect_timeout_s: int = Field(default=3, ge=1)
    #: A statement that gets no answer for so long is given up, and its connection with it.
    answer_timeout_s: float = Field(default=10.0, ge=2)
    #: `turnmill doctor` demands a synchronous standby, as it does when `url` has several hosts.
    require_standby: bool = False

    @property
    def is_pooled(self) -> bool:
        """Whether each transaction may have another server connection: no session state."""
        return self.direct_url is not None

    @property
    def session_url(self) -> SecretUrl:
        """Leads to a connection that keeps its session."""
        return self.direct_url or self.url

    @property
    def has_several_hosts(self) -> bool:
        return "," in self.url.get_secret_value().partition("?")[0].rpartition("@")[2]


class BrokerSettings(Section):
    #: `amqp://…` (RabbitMQ), `redis://…` (Redis or Valkey), `sentinel://…` (their Sentinels);
    #: several URLs joined with `;`.
    url: BrokerURL = SecretUrl("amqp://guest:guest@127.0.0.1:5672//")
    #: Sentinel: what it calls the primary (`sentinel monitor NAME …`).
    sentinel_primary: str | None = None
    #: Sentinel: its own password, if it asks for one; the URL has the primary's.
    sentinel_password: SecretStr | None = None
    #: RabbitMQ: heartbeat of a worker's connection; a silent one is replaced after about two.
    heartbeat_s: int = Field(default=8, ge=2)
    #: Redis: must exceed the longest turn plus the drain. Recovery is the rescuer's, not this.
    visibility_timeout_s: int = Field(default=420, ge=5)
    #: RabbitMQ: where `turnmill doctor` finds the management API, `http://user:password@host:15672`;
    #: port 15672 of the broker, with the broker's login, when left out.
    management_url: SecretUrl | None = None

    @model_validator(mode="after")
    def _knows_its_primary(self) -> Self:
        if self.is_sentinel and self.sentinel_primary is None:
            raise ValueError("Sentinel needs TURNMILL_BROKER__SENTINEL_PRIMARY, the primary's name")
        return self

    @property
    def is_sentinel(self) -> bool:
        return self._scheme in SENTINEL

    @property
    def is_amqp(self) -> bool:
        return self._scheme in AMQP

    @property
    def _scheme(self) -> str:
        return self.url.get_secret_value().partition("://")[0]


class RelaySettings(Section):
    #: Hints of one lane of one model that the broker may hold. The rest waits in Postgres,
    #: where it stays ordered, cancellable and cheap.
    window: int = Field(default=512, ge=1)
    #: Hints taken from the outbox at a time.
    batch_size: int = Field(default=64, ge=1, le=1000)
    #: Connections that publish in parallel. One is fastest beside its broker; a distant one,
    #: whose confirms take long, needs more.
    publishers: int = Field(default=1, ge=1, le=64)
    #: How often the outbox is looked at when nothing says that it changed.
    sweep_s: float = Field(default=1.0, gt=0)


class AffinitySettings(Section):
    #: For how long after its last reply a conversation's next turn goes to the worker that gave
    #: it, and has its KV cache; 0: to any worker.
    warm_s: float = Field(default=600.0, ge=0)
    #: What a turn may lose by that, at most, milliseconds: a hint that its worker has not taken by
    #: then is any worker's.
    ttl_ms: int = Field(default=200, ge=10, le=5000)
    #: The lanes whose conversations return to their worker.
    lanes: tuple[Lane, ...] = (Lane.INTERACTIVE,)

    @property
    def warm_lanes(self) -> tuple[Lane, ...]:
        """None when it is off."""
        return self.lanes if self.warm_s else ()


class WorkerSettings(Section):
    #: `cluster`: all workers of a lane consume it. `standby`: load the model, and consume once no
    #: other live worker does.
    mode: Literal["cluster", "standby"] = "cluster"
    #: Turns of each lane in work at once: those of one lane never wait for a thread that another
    #: lane has.
    concurrency: int = Field(default=32, ge=1, le=4096)
    #: The lanes this worker consumes.
    lanes: tuple[Lane, ...] = (Lane.INTERACTIVE, Lane.BATCH)
    #: How long an attempt keeps its turn without a heartbeat.
    lease_s: float = Field(default=15.0, gt=0.2)
    #: How long a stopping worker lets its turns finish before it hands them back.
    drain_s: float = Field(default=30.0, ge=0)
    #: Attempts a turn may use up before it is parked.
    max_attempts: int = Field(default=5, ge=1, le=100)
    #: Attempts that died with their worker before a turn is quarantined.
    quarantine_after: int = Field(default=3, ge=1, le=100)
    #: Longest time of one attempt. A reply that takes longer is continued by the next one, without
    #: using up an attempt; an engine that said nothing to anybody for so long uses one up.
    turn_timeout_s: float = Field(default=300.0, gt=0)
    #: How long an engine that was told to stop may go on with a turn. After that it counts as
    #: hung: its turn is taken from it, and the process ends for a fresh one to be started.
    #: Longer than Postgres may take to answer, for which a turn may be waiting instead.
    hang_s: float = Field(default=15.0, gt=0)
    #: Where a conversation has outgrown the context window: the share of it that a summary of
    #: the turns left out may take, written by the model itself; 0: they are left out without one.
    summary_share: float = Field(default=0.0, ge=0, le=0.25)
    #: The share of the context window that passages which come with a turn (`documents`) may take;
    #: those further down their list are left out.
    documents_share: float = Field(default=0.5, gt=0, le=0.9)
    #: Chunks of a turn are kept, and shown to its readers, about once in this time.
    flush_s: float = Field(default=0.25, ge=0.01)
    #: How often lost turns and lost hints are looked for.
    rescue_every_s: float = Field(default=1.0, gt=0)
    #: Hints that no worker has claimed after this time are looked for by the relay, which compares
    #: their number with the broker's queue; those that it misses are published again.
    hint_lost_after_s: float = Field(default=4.0, gt=0)


#: More would be before 1970, where no id reaches.
Days = Annotated[int, Field(ge=1, le=10_000)]


class RetentionSettings(Section):
    #: Days that a conversation's turns and replies are kept after they ended; for ever when left
    #: out. Open turns stay, whatever their age.
    turns_days: Days | None = None
    #: Days that parked turns are kept; as long as other turns when left out.
    parked_days: Days | None = None
    #: Days that a batch is kept, with its turns and replies, after the last of them ended; as
    #: long as other turns when left out.
    batches_days: Days | None = None
    #: Days that attempts are kept, at least: they go by whole months. With their turn they go
    #: in any case.
    attempts_days: Days | None = 30
    #: How often each worker looks for what is older.
    every_s: float = Field(default=3600.0, gt=0)

    @property
    def kept_parked_days(self) -> int | None:
        return self.turns_days if self.parked_days is None else self.parked_days

    @property
    def kept_batches_days(self) -> int | None:
        return self.turns_days if self.batches_days is None else self.batches_days

    @property
    def kept_replies_days(self) -> int | None:
        """After these, a month may be without replies."""
        days = [days for days in (self.turns_days, self.batches_days) if days is not None]
        return min(days, default=None)


class EngineSettings(Section):
    #: `auto`, or an engine's name.
    name: str = "auto"
    #: The default model, a folder, a .gguf file, a Hugging Face id, the name of a compressed model,
    #: or `promoted`: the one that `turnmill models promote` named last.
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
    #: Keep keys and values of ended turns, for conversations that go on and for prompts that
    #: begin alike.
    prefix_cache: bool = True
    #: GPUs that share the model (vLLM engine only).
    tensor_parallel: int = Field(default=1, ge=1)
    #: Numbers in the KV cache (OpenVINO engine only; `auto` is its own choice).
    kv_cache_dtype: Literal["auto", "int8", "float32", "bfloat16", "float16"] = "auto"
    #: Prompt tokens computed between two tokens of the turns that are already running; left out,
    #: 96 (OpenVINO, vLLM on a CPU) or 256 (transformers, vLLM on a GPU).
    prefill_tokens: int | None = Field(default=None, ge=16)
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
    #: Seconds between two looks at whether an endpoint is ready.
    check_every_s: float = Field(default=2.0, gt=0)
    #: Seconds in which an endpoint must say something; after that the turn goes on at another.
    silence_s: float = Field(default=30.0, gt=0)
    #: Echo engine: seconds per token.
    echo_token_s: float = Field(default=0.0, ge=0)
    #: Echo engine: share of the turns that fail and are tried again.
    echo_failure_rate: float = Field(default=0.0, ge=0, le=1)
    #: Echo engine: whether it goes on after the text of an earlier attempt, or begins again.
    echo_can_continue: bool = True
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


class APISettings(Section):
    #: Address to listen on; `0.0.0.0` for all.
    host: str = "127.0.0.1"
    #: Port to listen on.
    port: int = Field(default=8000, ge=0, le=65535)
    #: Larger requests are refused with 413.
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    #: Seconds from the start of a plain call to its answer, at most: it then answers 504, and the
    #: turn goes on. Less than the clients' own timeout, which is 600 s for OpenAI's: a client that
    #: gives up first does not see the 504 and repeats the call as another turn.
    wait_s: float = Field(default=570.0, gt=0)
    #: How long a streamed call waits for the first chunk before it sends its headers.
    stream_headers_s: float = Field(default=10.0, gt=0)
    #: Origins whose web pages may call the API (CORS), `https://chat.example.com`, or `*` for all;
    #: none when left out. A page that calls it has an API key in it: give it one of its own.
    cors_origins: tuple[Origin, ...] = ()
    #: Connections a process holds, at most, and fewer where it may not open so many files. When all
    #: are taken, one that still owes a request is closed for a new one.
    max_connections: int = Field(default=8192, ge=1)
    #: Seconds in which a request's headers must arrive.
    header_timeout_s: float = Field(default=10.0, gt=0)
    #: Seconds in which a request's body must arrive, and one more for each 10,000 bytes of it.
    body_timeout_s: float = Field(default=20.0, gt=0)
    #: Seconds in which a client must read something of what was sent to it.
    send_timeout_s: float = Field(default=60.0, gt=0)
    #: Seconds that a connection is kept for its next request. Longer than clients keep theirs: it
    #: is the client that closes, and no request meets a connection that is just being closed.
    idle_timeout_s: int = Field(default=75, ge=1)


class FlowerSettings(Section):
    #: Address to listen on.
    host: str = "127.0.0.1"
    #: Port to listen on.
    port: int = Field(default=5555, ge=1, le=65535)
    #: Who logs in.
    user: str = "turnmill"
    #: Required: `turnmill flower` does not start without one.
    password: SecretStr | None = None


class MetricsSettings(Section):
    #: Address on which each process (api, relay, worker) serves `/metrics`, `/live` and `/ready`,
    #: to whoever can reach it, without a key; `0.0.0.0` for all.
    host: str = "127.0.0.1"
    #: Port to listen on; 0, and where another process has it: any free one.
    port: int = Field(default=0, ge=0, le=65535)


class LogSettings(Section):
    #: What is logged.
    level: Literal["debug", "info", "warning", "error"] = "info"
    #: `json` for machines, `console` for people; `auto` asks whether a terminal is attached.
    format: Literal["auto", "json", "console"] = "auto"


class Settings(BaseSettings):
    """All settings of one process."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    #: The embedded stack's data, downloaded models, results.
    data: Path = Field(default_factory=lambda: default_data_dir())
    #: The tenant that commands act for; `--tenant` chooses another one.
    tenant: str = DEFAULT_TENANT
    database: DatabaseSettings = DatabaseSettings()
    broker: BrokerSettings = BrokerSettings()
    relay: RelaySettings = RelaySettings()
    affinity: AffinitySettings = AffinitySettings()
    worker: WorkerSettings = WorkerSettings()
    retention: RetentionSettings = RetentionSettings()
    engine: EngineSettings = EngineSettings()
    api: APISettings = APISettings()
    flower: FlowerSettings = FlowerSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Environment(settings_cls), StackFileSource(settings_cls)

    @property
    def models_dir(self) -> Path:
        return self.engine.models_dir or self.data / "models"


class _Environment(EnvSettingsSource):
    """The environment without what nobody gave.

    A list that is not JSON is left to validation, which names its variable.
    """

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {name.lower(): value for name, value in without_strangers(os.environ).items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


class StackFileSource(PydanticBaseSettingsSource):
    """Where a running embedded stack listens, so that `turnmill ask` needs no configuration."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        data = self.current_state.get("data") or default_data_dir()
        path = Path(data) / STACK_FILE
        try:
            content: dict[str, Any] = json.loads(path.read_text())["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return content


def default_data_dir() -> Path:
    """Root's data lies in /var/lib: PostgreSQL's account may not enter root's home.

    So does that of whoever has no home.
    """
    base = os.environ.get("XDG_DATA_HOME")
    if os.geteuid() == 0 or not (base or home()):
        return Path("/var/lib/turnmill")
    return Path(base or f"{home()}/.local/share") / "turnmill"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; raises `SettingsError` with one line per mistake."""
    _refuse_unknown_variables(without_strangers(os.environ))
    refuse_unreadable_credentials()
    try:
        return Settings(**overrides)
    except ValidationError as error:
        lines = [_describe(item) for item in error.errors()]
        raise SettingsError("\n".join(["The configuration is wrong.", *lines])) from None


def variable_names() -> Iterator[str]:
    """Every environment variable the settings know, sorted within its section."""
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, Section):
            yield from (f"{PREFIX}{name}__{inner}".upper() for inner in section.model_fields)
        else:
            yield f"{PREFIX}{name}".upper()


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = set(variable_names())
    unknown = sorted(v for v in environ if v.upper().startswith(PREFIX) and v.upper() not in known)
    if not unknown:
        return
    lines = []
    for variable in unknown:
        close = difflib.get_close_matches(variable.upper(), known, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        lines.append(f"  {variable} is not a setting.{hint}")
    raise SettingsError("\n".join(["The configuration is wrong.", *lines]))


def _describe(item: Any) -> str:
    """One mistake, without its value: it may be a password."""
    where = PREFIX + "__".join(str(part) for part in item["loc"]).upper()
    return f"  {where}: {item['msg'].removeprefix('Value error, ')}"
