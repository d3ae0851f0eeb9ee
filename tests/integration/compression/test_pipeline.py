"""The pipeline on a tiny model: resumed after kill -9, and the same artifact bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="pip install 'turnmill[compression]'")

from tests.compression_models import make_conversations, make_llama, make_tokenizer
from tests.compression_steps import KILL_FILE, NUDGE
from turnmill.compression import artifact, pipeline, step
from turnmill.compression.artifact import Manifest, verify
from turnmill.compression.late import measure_late
from turnmill.compression.pipeline import Evaluation, Job, compress
from turnmill.compression.recipe import Recipe, parse_recipe
from turnmill.compression.store import ModelStore
from turnmill.compression.texts import Conversation, part_of
from turnmill.schemas.errors import InvalidInput, SettingsError

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("one_thread"),
]
ROOT = Path(__file__).parents[3]
WINDOWS = {"length": 64, "calibration": 8, "train": 16, "heldout": 4, "prose": 4}
#: Runs `turnmill` with the step `nudge` of the tests.
PROGRAM = f"""
import sys
from turnmill.compression import artifact, pipeline, step
step.STEPS["nudge"] = {NUDGE!r}
from tests.integration.compression.test_pipeline import job
from turnmill.compression.pipeline import compress
from turnmill.compression.store import ModelStore
from pathlib import Path
compress(job(Path(sys.argv[1])), ModelStore(Path(sys.argv[2])))
"""


@pytest.fixture(autouse=True)
def nudge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step.STEPS, "nudge", NUDGE)


def recipe(**changes: Any) -> Recipe:
    content = {"windows": WINDOWS, "step": [{"kind": "nudge"}, {"kind": "nudge", "size": 0.02}]}
    return parse_recipe(content | changes)


def job(base: Path, **changes: Any) -> Job:
    inputs = {
        "name": "small",
        "base": base,
        "base_name": "tiny",
        "recipe": recipe(),
        "conversations": make_conversations(),
        "prose": "The mill stands by the river. " * 40,
    }
    return Job(**(inputs | changes))


def test_a_pipeline_killed_twice_ends_in_the_same_artifact(
    checkpoint: Path, tmp_path: Path
) -> None:
    whole = compress(job(checkpoint), ModelStore(tmp_path / "whole"))
    kill_file = tmp_path / "kill"
    command = [sys.executable, "-c", PROGRAM, str(checkpoint), str(tmp_path / "killed")]
    environment = os.environ | {KILL_FILE: str(kill_file)}
    for _ in range(2):
        kill_file.touch()
        killed = subprocess.run(command, env=environment, cwd=ROOT)
        assert killed.returncode == -signal.SIGKILL
        assert ModelStore(tmp_path / "killed").names() == []
        assert len(ModelStore(tmp_path / "killed").unfinished()) == 1

    subprocess.run(command, env=environment, cwd=ROOT, check=True)

    resumed = verify(tmp_path / "killed" / "artifacts" / "small")
    assert resumed == whole
    assert not list((tmp_path / "killed" / "artifacts" / ".runs").iterdir())


def test_a_second_process_gets_the_artifact_that_the_first_one_makes(
    checkpoint: Path, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path)
    waiting, made = threading.Event(), []

    class Waits(step.Silent):
        def note(self, text: str) -> None:
            if "waiting" in text:
                waiting.set()

    def second() -> None:
        made.append(compress(job(checkpoint, progress=Waits()), store))

    class Starts(step.Silent):
        """Starts the second process's work in the middle of the first one's."""

        def note(self, text: str) -> None:
            if text.startswith("step 2"):
                assert store.unfinished() == []
                other.start()
                assert waiting.wait(60)

    other = threading.Thread(target=second)
    whole = compress(job(checkpoint, progress=Starts()), store)
    other.join(60)

    assert made == [whole]
    assert list(store.runs.iterdir()) == []


def test_the_artifact_is_a_checkpoint_that_differs_from_its_base(
    checkpoint: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store = ModelStore(tmp_path)
    manifest = compress(job(checkpoint), store)

    model = AutoModelForCausalLM.from_pretrained(store.path("small"))
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.dtype == torch.bfloat16
    assert not torch.allclose(model.lm_head.weight.float(), base.lm_head.weight, atol=0.01)
    tokenizer = AutoTokenizer.from_pretrained(store.path("small"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert [each.told for each in manifest.steps] == [{"rounds": 4}, {"rounds": 4}]


def test_the_same_inputs_give_what_was_made_before_and_others_need_a_name(
    checkpoint: Path, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path)
    first = compress(job(checkpoint), store)

    assert compress(job(checkpoint), store) == first
    with pytest.raises(InvalidInput, match="Choose another --name"):
        compress(job(checkpoint, recipe=recipe(seed=2)), store)


def test_other_text_to_judge_on_needs_a_name_too(checkpoint: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    first = compress(job(checkpoint), store)
    with pytest.raises(InvalidInput, match=r"its prose is another.*another --name"):
        compress(job(checkpoint, prose="The river froze in March. " * 40), store)

    fewer = [each for each in make_conversations() if part_of(each.id) != "heldout"]
    (one, *others) = [each for each in make_conversations() if part_of(each.id) == "heldout"]
    changed = replace(one, messages=({"role": "user", "content": "Where is it?"},))
    with pytest.raises(InvalidInput, match="its held-out text is another"):
        compress(job(checkpoint, conversations=[*fewer, *others, changed]), store)

    other = job(checkpoint, name="other", prose="The river froze in March. " * 40)
    assert compress(other, store).inputs["prose"] != first.inputs["prose"]


def test_a_student_is_told_by_its_weights(checkpoint: Path, tmp_path: Path) -> None:
    student = tmp_path / "student"
    make_tokenizer().save_pretrained(student)
    make_llama(1, layers=1).save_pretrained(student)
    store = ModelStore(tmp_path)
    distil = {"kind": "distill", "student": str(student), "steps": 1, "batch": 1, "windows": 2}
    taught = recipe(step=[distil])
    first = compress(job(checkpoint, recipe=taught), store)
    assert compress(job(checkpoint, recipe=taught), store) == first

    make_llama(2, layers=1).save_pretrained(student)
    with pytest.raises(InvalidInput, match="its student of step 1 is another"):
        compress(job(checkpoint, recipe=taught), store)
    second = compress(job(checkpoint, recipe=taught, name="second"), store)
    assert second.inputs.keys() == first.inputs.keys()
    assert second.files["model.safetensors"] != first.files["model.safetensors"]

    (student / "config.json").unlink()
    with pytest.raises(InvalidInput, match=r"no config\.json"):
        compress(job(checkpoint, recipe=taught, name="third"), store)


def test_what_was_left_out_of_the_data_is_told(checkpoint: Path, tmp_path: Path) -> None:
    told: list[str] = []

    class Told(step.Silent):
        def note(self, text: str) -> None:
            told.append(text)

    leaking = Conversation("leaking", (), "The mill stands by the river. " * 40)
    given = [*make_conversations(), leaking]
    compress(job(checkpoint, conversations=given, progress=Told()), ModelStore(tmp_path))

    assert told[0].startswith("1 of 61 conversations are left out")


def test_the_evaluation_and_the_limits_it_misses_are_kept(checkpoint: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def evaluate(*given: Any) -> Evaluation:
        seen.append(given)
        return Evaluation({"perplexity": 2.0}, ("Perplexity is 2×, the limit 1.05×.",))

    manifest = compress(
        job(checkpoint, recipe=recipe(limits={"perplexity": 1.05}), evaluator=evaluate),
        ModelStore(tmp_path),
    )

    assert isinstance(manifest, Manifest)
    assert manifest.report == {"perplexity": 2.0}
    assert manifest.misses == ("Perplexity is 2×, the limit 1.05×.",)
    ((candidate, base, _, limits, _, _),) = seen
    assert (candidate.name, base, limits.perplexity) == ("small", checkpoint, 1.05)


def test_an_artifact_made_without_an_evaluation_is_measured_when_asked_for_again(
    checkpoint: Path, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path)
    limited = recipe(limits={"perplexity": 1.05})
    hasty = compress(job(checkpoint, recipe=limited), store)
    assert hasty.unmet

    def evaluate(*given: Any) -> Evaluation:
        given[-1].mkdir()
        (given[-1] / "report.md").write_text("Measured.")
        return Evaluation({"perplexity": 1.01})

    measuring = job(checkpoint, recipe=limited, evaluator=evaluate)
    weights = [path.stat().st_ino for path in store.path("small").glob("*.safetensors")]
    manifest = measure_late(measuring, store, compress(measuring, store))

    assert manifest == verify(store.path("small"))
    assert (manifest.report, manifest.unmet) == ({"perplexity": 1.01}, ())
    assert "report/report.md" in manifest.files
    assert {name: manifest.files[name] for name in hasty.files} == hasty.files
    # Linked: gigabytes are not copied while the store is locked.
    assert weights
    assert weights == [path.stat().st_ino for path in store.path("small").glob("*.safetensors")]
    # Neither measured twice, nor changed once it is served.
    again = job(checkpoint, recipe=limited, evaluator=lambda *_: pytest.fail("measured again"))
    assert measure_late(again, store, compress(again, store)) == manifest
    hasty = compress(job(checkpoint, recipe=limited, name="served"), store)
    store.promote("served", by="ada", force=True)
    assert measure_late(again, store, hasty) == verify(store.path("served")) == hasty


def test_an_artifact_whose_measuring_was_killed_is_not_made_again(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ModelStore(tmp_path)
    hasty = compress(job(checkpoint), store)
    measuring = job(checkpoint, evaluator=lambda *_: Evaluation({"perplexity": 1.01}))
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name == "small.partial":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", killed)
        # A killed process puts nothing back.
        patched.setattr(artifact, "put_back", lambda _: None)
        measure_late(measuring, store, hasty)
    assert not (store.folder / "small").exists()
    monkeypatch.setattr(pipeline._Run, "finish", lambda *_: pytest.fail("made again"))

    assert compress(job(checkpoint), store) == hasty

    assert measure_late(measuring, store, hasty).report == {"perplexity": 1.01}


def test_windows_that_the_model_cannot_read_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    long = recipe(windows=WINDOWS | {"length": 600})
    with pytest.raises(InvalidInput, match=r"context of 512.*--window length=512"):
        compress(job(checkpoint, recipe=long), ModelStore(tmp_path))


def test_what_is_quantized_already_is_not_compressed_again(
    checkpoint: Path, tmp_path: Path
) -> None:
    import json
    import shutil

    shutil.copytree(checkpoint, tmp_path / "quantized")
    config = tmp_path / "quantized" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"quantization_config": {"a": 1}})
    )

    with pytest.raises(InvalidInput, match="quantized already"):
        compress(job(tmp_path / "quantized"), ModelStore(tmp_path))


def test_a_step_whose_library_is_missing_names_its_extra_before_anything_runs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(step.LIBRARIES, "on-policy", ("no_such_library", "on-policy"))
    steps = [{"kind": "nudge"}, {"kind": "on-policy", "steps": 1}]
    with pytest.raises(SettingsError, match=r"pip install 'turnmill\[on-policy\]'"):
        compress(job(checkpoint, recipe=recipe(step=steps)), ModelStore(tmp_path))
    assert not list(tmp_path.rglob("step-0"))


def test_a_model_that_a_later_step_cannot_take_is_refused_before_anything_runs(
    checkpoint: Path, tmp_path: Path
) -> None:
    base = tmp_path / "other"
    shutil.copytree(checkpoint, base)
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    (base / "config.json").write_text(json.dumps(config))
    exported = recipe(step=[{"kind": "nudge"}, {"kind": "export", "to": "gguf"}])
    store = ModelStore(tmp_path / "store")
    with pytest.raises(InvalidInput, match="no RoPE of the type 'linear'"):
        compress(job(base, recipe=exported), store)
    assert not store.folder.exists() or not [*store.folder.iterdir()]
