"""`turnmill bench engine`: naive `generate`, an engine alone, and the engine in the system."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from turnmill.benchmarks import ceiling, measure, peers
from turnmill.benchmarks.aborts import AbortTime
from turnmill.benchmarks.ceiling import Ceiling
from turnmill.benchmarks.measure import Run, isolated
from turnmill.benchmarks.workload import Chat, mixed_chats, short_chats
from turnmill.schemas.settings import EngineSettings

#: Turns of a conversation, and conversations whose median is taken.
TURNS, CONVERSATIONS = 20, 3


#: What plain `generate` computes in, unless an engine in torch computes in something else.
BASE_DTYPE = "bfloat16"


@dataclass(frozen=True, slots=True)
class Plan:
    engines: tuple[EngineSettings, ...]
    chats: int = 64
    seed: int = 1
    #: Seconds after which naive `generate` is stopped between two chats.
    naive_s: float = 60.0
    #: Of `PEERS`: what the engines are compared with besides plain `generate`.
    peers: tuple[str, ...] = ()
    #: How often an engine alone and the same in the system are measured in turn.
    rounds: int = 3
    #: Where turns go through the whole system; None leaves that out.
    broker: str | None = "valkey"


@dataclass(slots=True)
class EngineResult:
    """One engine; times in seconds."""

    #: With its prefix cache off.
    forgetful: Run
    #: With the settings' own, once a round: each has other chats.
    alone: list[Run] = field(default_factory=list)
    #: The same chats as in that round, right after it.
    in_system: list[Run] = field(default_factory=list)
    #: Time to each turn's first token in a conversation, and tokens it had in the cache.
    conversation: list[float] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    conversation_in_system: list[float] = field(default_factory=list)
    #: Times to the first token of interactive turns: idle, beside a full batch lane.
    idle: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    idle_in_system: list[float] = field(default_factory=list)
    busy_in_system: list[float] = field(default_factory=list)
    aborts: list[AbortTime] = field(default_factory=list)
    #: Of the naive run that it is compared with.
    naive_dtype: str = BASE_DTYPE

    @property
    def kept(self) -> list[float]:
        """What the system keeps of the engine's rate, by round."""
        rounds = zip(self.in_system, self.alone, strict=False)
        return [inside.tokens_per_s / outside.tokens_per_s for inside, outside in rounds]


@dataclass(slots=True)
class Results:
    seed: int
    naive: dict[str, Run] = field(default_factory=dict)
    peers: dict[str, Run] = field(default_factory=dict)
    engines: dict[str, EngineResult] = field(default_factory=dict)
    #: Of the naive run that the peers are compared with.
    base_dtype: str = BASE_DTYPE
    ceiling: Ceiling | None = None


#: Is told each figure as soon as it is there, by name.
Note = Callable[[str, Run | EngineResult], None]

#: What a peer's row is called.
PEERS = {
    "celery": "Celery + generate",
    "llama": "llama.cpp's server",
    "manager": "transformers' own manager",
    "vllm": "vLLM's LLM, offline",
}


def run_plan(plan: Plan, note: Note) -> Results:
    """Everything in one run, each engine in processes of its own.

    Raises:
        SettingsError: an engine is unknown, or its libraries are not installed.
    """
    results = Results(plan.seed, base_dtype=_base_dtype(plan.engines[0]))
    results.ceiling = isolated(ceiling.find, plan.engines[0])
    chats = mixed_chats(plan.seed, plan.chats)
    for dtype in sorted({results.base_dtype, *map(_naive_dtype, plan.engines)}):
        settings = plan.engines[0].model_copy(update={"dtype": dtype})
        if settings.name != "transformers":
            settings = settings.model_copy(update={"device": "cpu"})
        results.naive[dtype] = isolated(peers.naive, settings, chats, plan.naive_s)
        note(f"naive generate, {dtype}", results.naive[dtype])
    for name in plan.peers:
        results.peers[PEERS[name]] = _measure_peer(name, plan, chats)
        note(PEERS[name], results.peers[PEERS[name]])
    for settings in plan.engines:
        results.engines[settings.name] = _measure(settings, plan, note)
        note(settings.name, results.engines[settings.name])
    return results


def _measure_peer(name: str, plan: Plan, chats: Sequence[Chat]) -> Run:
    settings = plan.engines[0]
    if name == "celery":
        from turnmill.benchmarks import celery_peer

        # Not isolated: it has a worker of its own.
        return celery_peer.measure(settings, plan.broker or "valkey", chats, plan.naive_s)
    if name == "llama":
        return isolated(peers.llama, settings, chats, _warm_up(plan))
    return isolated({"manager": peers.manager, "vllm": peers.vllm}[name], settings, chats)


def _measure(settings: EngineSettings, plan: Plan, note: Note) -> EngineResult:
    name = settings.name
    chats, warm_up = mixed_chats(plan.seed, plan.chats), _warm_up(plan)
    without_cache = settings.model_copy(update={"prefix_cache": False})
    result = EngineResult(
        isolated(measure.offline, without_cache, chats, warm_up), naive_dtype=_naive_dtype(settings)
    )
    note(f"{name}, cache off", result.forgetful)
    for number in range(plan.rounds if plan.broker else 1):
        chats = mixed_chats(plan.seed + number, plan.chats)
        result.alone.append(isolated(measure.offline, settings, chats, warm_up))
        note(f"{name}, cache on", result.alone[-1])
        if plan.broker:
            # Only here are servers and their clients needed.
            from turnmill.benchmarks import through

            # Not kept for the next round: an idle worker takes its share of the machine, too.
            with through.system(settings, plan.broker) as target:
                result.in_system.append(through.at_once(target, chats, warm_up))
                note(f"{name}, in the system", result.in_system[-1])
                if not number:
                    result.conversation_in_system = through.talk(target, TURNS, CONVERSATIONS)
                    result.idle_in_system, result.busy_in_system = through.lanes(target)
    result.conversation, result.cached = isolated(measure.talk, settings, TURNS, CONVERSATIONS)
    result.idle, result.busy, result.aborts = isolated(measure.beside_others, settings)
    return result


def _warm_up(plan: Plan) -> Sequence[Chat]:
    return short_chats(plan.seed + 1, 8, 16)


def _base_dtype(settings: EngineSettings) -> str:
    return BASE_DTYPE if settings.dtype == "auto" else settings.dtype


def _naive_dtype(settings: EngineSettings) -> str:
    """What `generate` computes in that an engine is compared with: an engine in torch with its
    own numbers, all others with what a checkpoint has.
    """
    if settings.dtype == "auto" and settings.name == "transformers":
        return isolated(peers.engine_dtype, settings)
    return _base_dtype(settings)
