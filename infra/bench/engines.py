"""`turnmill bench engine`: naive `generate`, an engine alone, and the engine in the system."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from turnmill.infra.bench import ceiling, measure
from turnmill.infra.bench.aborts import AbortTime
from turnmill.infra.bench.ceiling import Ceiling
from turnmill.infra.bench.measure import Run
from turnmill.infra.bench.peers import peers
from turnmill.infra.bench.workload import Chat, mixed_chats, short_chats
from turnmill.schemas.process.isolated import isolated
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
    #: Seconds of naive `generate` for each engine, in all rounds; it stops between two chats.
    naive_s: float = 60.0
    #: Of `PEERS`: what the engines are compared with besides plain `generate`.
    peers: tuple[str, ...] = ()
    #: How often naive `generate`, an engine alone and the same in the system are measured in turn.
    rounds: int = 3
    #: Where turns go through the whole system; None leaves that out.
    broker: str | None = "valkey"


@dataclass(slots=True)
class EngineResult:
    """One engine, by round where it is a list of runs: each has other chats; times in seconds."""

    #: Plain `generate` with the first chats of the round, as many as there is time for.
    naive: list[Run] = field(default_factory=list)
    #: Beside it, with the engine's prefix cache off.
    forgetful: list[Run] = field(default_factory=list)
    #: With the settings' own.
    alone: list[Run] = field(default_factory=list)
    #: Beside that.
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
    #: Of the naive runs.
    naive_dtype: str = BASE_DTYPE

    @property
    def gained(self) -> list[float]:
        """The engine's rate ÷ that of naive `generate`, by round."""
        return _ratios(self.forgetful, self.naive)

    @property
    def kept(self) -> list[float]:
        """What the system keeps of the engine's rate, by round."""
        return _ratios(self.in_system, self.alone)


def _ratios(above: Sequence[Run], below: Sequence[Run]) -> list[float]:
    rounds = zip(above, below, strict=False)
    return [one.tokens_per_s / other.tokens_per_s for one, other in rounds]


@dataclass(slots=True)
class Results:
    seed: int
    #: By dtype.
    naive: dict[str, list[Run]] = field(default_factory=dict)
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
    # Engines bring their own.
    if plan.peers or results.base_dtype not in map(_naive_dtype, plan.engines):
        base = _naive(plan.engines[0], results.base_dtype, plan, chats, note)
        results.naive[results.base_dtype] = [base]
    for name in plan.peers:
        results.peers[PEERS[name]] = _measure_peer(name, plan, chats)
        note(PEERS[name], results.peers[PEERS[name]])
    for settings in plan.engines:
        result = results.engines[settings.name] = _measure(settings, plan, note)
        results.naive.setdefault(result.naive_dtype, []).extend(result.naive)
        note(settings.name, result)
    return results


def _naive(
    settings: EngineSettings, dtype: str, plan: Plan, chats: Sequence[Chat], note: Note
) -> Run:
    """One round of it."""
    settings = settings.model_copy(update={"dtype": dtype})
    if settings.name != "transformers":
        settings = settings.model_copy(update={"device": "cpu"})
    run = isolated(peers.naive, settings, chats, plan.naive_s / plan.rounds)
    note(f"naive generate, {dtype}", run)
    return run


def _measure_peer(name: str, plan: Plan, chats: Sequence[Chat]) -> Run:
    settings = plan.engines[0]
    if name == "celery":
        from turnmill.infra.bench.peers import celery as celery_peer

        # Not isolated: it has a worker of its own.
        return celery_peer.measure(settings, plan.broker or "valkey", chats, plan.naive_s)
    if name == "llama":
        return isolated(peers.llama, settings, chats, _warm_up(plan))
    return isolated({"manager": peers.manager, "vllm": peers.vllm}[name], settings, chats)


def _measure(settings: EngineSettings, plan: Plan, note: Note) -> EngineResult:
    name, warm_up = settings.name, _warm_up(plan)
    without_cache = settings.model_copy(update={"prefix_cache": False})
    result = EngineResult(naive_dtype=_naive_dtype(settings))

    def naive(chats: Sequence[Chat]) -> None:
        result.naive.append(_naive(settings, result.naive_dtype, plan, chats, note))

    def forgetful(chats: Sequence[Chat]) -> None:
        result.forgetful.append(isolated(measure.offline, without_cache, chats, warm_up))
        note(f"{name}, cache off", result.forgetful[-1])

    def alone(chats: Sequence[Chat]) -> None:
        result.alone.append(isolated(measure.offline, settings, chats, warm_up))
        note(f"{name}, cache on", result.alone[-1])

    def in_system(chats: Sequence[Chat]) -> None:
        if plan.broker:
            _measure_in_system(result, settings, plan.broker, chats, warm_up)
            note(f"{name}, in the system", result.in_system[-1])

    steps = [naive, forgetful, alone, in_system]
    for number in range(plan.rounds):
        for step in steps:
            step(mixed_chats(plan.seed + number, plan.chats))
        # A machine that grows slower all the while is then nobody's advantage.
        steps.reverse()
    result.conversation, result.cached = isolated(measure.talk, settings, TURNS, CONVERSATIONS)
    result.idle, result.busy, result.aborts = isolated(measure.beside_others, settings)
    return result


def _measure_in_system(
    result: EngineResult,
    settings: EngineSettings,
    broker: str,
    chats: Sequence[Chat],
    warm_up: Sequence[Chat],
) -> None:
    # Only here are servers and their clients needed.
    from turnmill.infra.bench import through

    # Not kept for the next round: an idle worker takes its share of the machine, too.
    with through.system(settings, broker) as target:
        result.in_system.append(through.at_once(target, chats, warm_up))
        if not result.conversation_in_system:
            result.conversation_in_system = through.talk(target, TURNS, CONVERSATIONS)
            result.idle_in_system, result.busy_in_system = through.lanes(target)


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
