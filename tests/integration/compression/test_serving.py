"""Artifacts through the running system: promoted, verified, and answering as the model itself does.

Real PostgreSQL, broker, relay and worker processes; the engines are transformers and OpenVINO.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.compression_models import make_conversations
from turnmill.compression.artifact import verify
from turnmill.compression.evaluate.agreement import greedy_replies
from turnmill.compression.evaluate.loading import (
    has_int8_activations,
    load_candidate,
    load_tokenizer,
    quantization_of,
)
from turnmill.compression.pipeline import Job, compress
from turnmill.compression.recipe import parse_recipe
from turnmill.compression.store import ModelStore
from turnmill.compression.texts import Conversation
from turnmill.producer.accept import accept
from turnmill.producer.turns import read_turn
from turnmill.schemas.errors import ArtifactRefused, NotFound, SettingsError
from turnmill.schemas.settings import EngineSettings
from turnmill.schemas.turns import GenerationParams, TurnState
from turnmill.workers.engines.models import PROMOTED, prepare_model
from turnmill.workers.engines.registry import resolve_engine_name

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("one_thread"),
]

torch = pytest.importorskip("torch", reason="pip install 'turnmill[compression]'")
transformers = pytest.importorskip("transformers", reason="pip install 'turnmill[compression]'")

MAX_TOKENS = 12
#: Importing torch and transformers takes a minute beside other tests.
STARTING_S = 180.0
QUESTIONS = ("where is my parcel", "the refund is late", "thanks")
WINDOWS = {"length": 64, "calibration": 8, "train": 16, "heldout": 4, "prose": 4}
EXPORT = {"kind": "export", "to": "gguf"}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "dense": [EXPORT],
    "int8": [{"kind": "quantize", "bits": 8, "method": "rtn"}, EXPORT],
    "int4": [{"kind": "quantize", "bits": 4, "group": 32, "method": "rtn"}, EXPORT],
    "w8a8": [{"kind": "quantize", "method": "smoothquant"}],
    "bnb-int8": [{"kind": "quantize", "method": "bnb-int8"}],
    "bnb-nf4": [{"kind": "quantize", "method": "bnb-nf4"}],
    "shallow-and-sparse": [
        {"kind": "drop-layers", "count": 1},
        {"kind": "prune", "method": "wanda", "sparsity": 0.5},
    ],
    "two-of-four": [{"kind": "prune", "method": "sparsegpt", "pattern": "2:4"}],
}
#: What each engine opens: OpenVINO the exported GGUF file, transformers every checkpoint.
SERVED = [("openvino", name) for name in RECIPES if EXPORT in RECIPES[name]] + [
    ("transformers", name) for name in RECIPES
]


@pytest.fixture(scope="module")
def models_dir(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama_maker: Callable[..., Any],
    tiny_tokenizer: Any,
) -> Path:
    """A folder of models whose store has an artifact for each recipe."""
    folder = tmp_path_factory.mktemp("models")
    tiny_llama_maker().save_pretrained(folder / "base")
    tiny_tokenizer.save_pretrained(folder / "base")
    for name in RECIPES:
        recipe = parse_recipe({"windows": WINDOWS, "step": RECIPES[name]})
        conversations = make_conversations()
        compress(
            Job(name, folder / "base", "base", recipe, conversations, "Prose. " * 80),
            ModelStore(folder),
        )
    return folder


def measured_replies(folder: Path) -> list[str]:
    """What the artifact says where it is evaluated, in this process."""
    asked = [
        Conversation(
            str(number),
            ({"role": "user", "content": question}, {"role": "assistant", "content": ""}),
        )
        for number, question in enumerate(QUESTIONS)
    ]
    model = load_in_32_bits(folder)
    return greedy_replies(model, load_tokenizer(folder), asked, max_tokens=MAX_TOKENS)


def load_in_32_bits(folder: Path) -> Any:
    """Load as reports do, but dequantize to float32, not to the 16 bits that reports compute in."""
    if quantization_of(folder) != "compressed-tensors" or has_int8_activations(folder):
        return load_candidate(folder, "float32")
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, device_map={"": "cpu"}
    )


@pytest.mark.parametrize(("engine", "name"), SERVED)
def test_the_system_answers_with_the_promoted_artifact_as_it_was_measured(
    make_system: Callable[..., Any],
    database_url: str,
    valkey_url: str,
    eventually: Callable[..., None],
    models_dir: Path,
    engine: str,
    name: str,
) -> None:
    ModelStore(models_dir).promote(name, by="tests", force=True)
    system = make_system(database_url, valkey_url)
    system.start("relay")
    worker = system.start(
        "worker",
        TURNMILL_ENGINE__NAME=engine,
        TURNMILL_ENGINE__MODEL=PROMOTED,
        TURNMILL_ENGINE__SERVED_NAME=system.settings.engine.model_name,
        TURNMILL_ENGINE__MODELS_DIR=str(models_dir),
        TURNMILL_ENGINE__DEVICE="cpu",
        TURNMILL_ENGINE__DTYPE="float32",
        TURNMILL_ENGINE__KV_CACHE_GIB="0.1",
        TURNMILL_ENGINE__CONTEXT_WINDOW="256",
    )
    eventually(lambda: worker.says("worker.consuming") or not worker.is_running, STARTING_S)
    assert worker.is_running, worker.log.read_text()
    params = GenerationParams(temperature=0, max_tokens=MAX_TOKENS)
    accepted = []
    for question in QUESTIONS:
        accepted.append(accept(system.database, system.request(question, params=params)))
        if name.startswith("bnb"):
            # bitsandbytes computes in 16 bits, whose last ones depend on the batch.
            system.wait_until_settled(STARTING_S)
    system.wait_until_settled(STARTING_S)

    turns = [read_turn(system.database, system.tenant_id, each.turn_id) for each in accepted]

    assert [turn.state for turn in turns] == [TurnState.COMPLETED] * len(QUESTIONS)
    expected = measured_replies(ModelStore(models_dir).path(name))
    # A random model says bytes of halved characters: what ends with one is cut by engines.
    said = [turn.reply.content.rstrip("\ufffd") for turn in turns]
    assert said == [reply.rstrip("\ufffd") for reply in expected]
    # One that is made of zeros for a half may have nothing to say to some.
    assert any(len(reply) > 3 for reply in said)


def settings_for(models_dir: Path, **others: Any) -> EngineSettings:
    return EngineSettings(models_dir=models_dir, device="cpu", **others)


def test_an_artifact_is_opened_by_its_name_its_folder_or_its_promotion(models_dir: Path) -> None:
    store = ModelStore(models_dir)
    store.promote("dense", by="tests")
    folder = str(store.path("dense"))

    for model in ("dense", folder, PROMOTED):
        settings = settings_for(models_dir, model=model)
        assert prepare_model(settings, "safetensors") == folder
        assert prepare_model(settings, "gguf") == f"{folder}/model-f16.gguf"
        assert resolve_engine_name(settings) == "openvino"


def test_an_artifact_without_the_wanted_weights_says_how_to_get_them(models_dir: Path) -> None:
    with pytest.raises(SettingsError, match=r"no model-q4_0\.gguf.*step 'export'"):
        prepare_model(settings_for(models_dir, model="dense"), "gguf-q4_0")


@pytest.fixture
def copied(models_dir: Path, tmp_path: Path) -> Path:
    """A copy of an artifact, in a store of its own, for tests that damage it."""
    folder = tmp_path / "artifacts" / "dense"
    shutil.copytree(models_dir / "artifacts" / "dense", folder)
    return folder


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_damaged_artifact_is_refused_before_it_is_loaded(copied: Path, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, model="dense")
    assert prepare_model(settings, "gguf")
    damage(copied / "model.safetensors")

    for form in ("gguf", "safetensors"):
        with pytest.raises(ArtifactRefused, match=r"model\.safetensors \(changed\)"):
            prepare_model(settings, form)  # type: ignore[arg-type]


def test_a_worker_does_not_start_with_an_artifact_that_was_damaged_after_its_promotion(
    make_system: Callable[..., Any],
    database_url: str,
    valkey_url: str,
    eventually: Callable[..., None],
    copied: Path,
    tmp_path: Path,
) -> None:
    ModelStore(tmp_path).promote("dense", by="tests", force=True)
    damage(copied / "model.safetensors")
    worker = make_system(database_url, valkey_url).start(
        "worker",
        TURNMILL_ENGINE__NAME="transformers",
        TURNMILL_ENGINE__MODEL=PROMOTED,
        TURNMILL_ENGINE__MODELS_DIR=str(tmp_path),
    )

    eventually(lambda: not worker.is_running, STARTING_S)

    said = worker.log.read_text()
    assert "model.safetensors (changed)" in said
    assert "Compress the model again, or restore the folder from a copy" in said
    assert "Traceback" not in said


def test_a_worker_that_is_to_serve_what_nobody_promoted_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="turnmill models promote"):
        prepare_model(settings_for(tmp_path, model=PROMOTED), "gguf")


def test_every_artifact_of_these_tests_is_whole(models_dir: Path) -> None:
    for name in RECIPES:
        assert verify(ModelStore(models_dir).path(name)).name == name
