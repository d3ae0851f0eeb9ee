"""Measuring a model beside its original: pairs, agreement, remarks, the gate, the page."""

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("sacrebleu")

import torch

from turnmill.compression.checkpoint import load_model
from turnmill.compression.evaluate import agreement
from turnmill.compression.evaluate.frontier import on_frontier
from turnmill.compression.evaluate.gate import misses
from turnmill.compression.evaluate.intervals import Figure
from turnmill.compression.evaluate.layers import layer_errors
from turnmill.compression.evaluate.page import markdown, write_report
from turnmill.compression.evaluate.perplexity import perplexity, perplexity_ratio, window_losses
from turnmill.compression.evaluate.remarks import remarks_of
from turnmill.compression.evaluate.report import (
    Domain,
    Measures,
    Report,
    Row,
    evaluate,
    evaluate_all,
)
from turnmill.compression.evaluate.speed import Speed
from turnmill.compression.texts import Texts
from turnmill.schemas.errors import InvalidInput

#: Without processes for speed.
QUICK = Measures(replies=2, reply_tokens=6, speed_rounds=0, dtype="float32")


def disturbed(model: Any, by: float) -> Any:
    """A copy whose linear weights have noise of this relative size."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, torch.nn.Linear) and module is not other.lm_head:
                noise = torch.randn(module.weight.shape, generator=generator)
                module.weight += by * module.weight.std() * noise
    return other


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama_maker: Callable[..., Any],
    tiny_tokenizer: Any,
) -> dict[str, Path]:
    """Saved models: the original, one close to it, one far from it, one with a layer less."""
    original = tiny_llama_maker()
    models = {
        "original": original,
        "close": disturbed(original, 0.02),
        "far": disturbed(original, 0.5),
        "shallow": tiny_llama_maker(layers=1),
    }
    root = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        model.save_pretrained(root / name)
        tiny_tokenizer.save_pretrained(root / name)
    return {name: root / name for name in models}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than such small models do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reports(folders: dict[str, Path], tiny_texts: Texts) -> dict[str, Report]:
    report = evaluate_all(list(folders.values()), folders["original"], tiny_texts, measures=QUICK)
    return {
        row.name: report.model_copy(update={"rows": (report.original, row)})
        for row in report.candidates
    }


def test_perplexity_scores_every_token_but_the_first(tiny_llama: Any, tiny_texts: Texts) -> None:
    windows = tiny_texts.heldout[:2]

    losses = window_losses(tiny_llama, windows)

    with torch.inference_mode():
        theirs = [float(tiny_llama(each[None], labels=each[None]).loss) for each in windows]
    assert losses == pytest.approx(theirs, rel=1e-5)
    assert perplexity(losses).value == pytest.approx(math.exp(sum(theirs) / 2), rel=1e-5)


def test_model_that_knows_nothing_has_the_vocabularys_perplexity(
    tiny_llama: Any, tiny_texts: Texts
) -> None:
    torch.nn.init.zeros_(tiny_llama.model.norm.weight)

    value = perplexity(window_losses(tiny_llama, tiny_texts.prose)).value

    assert value == pytest.approx(tiny_llama.config.vocab_size, rel=1e-4)


def test_paired_ratio_is_sharper_than_windows_differ() -> None:
    original = [1.0, 2.0, 3.0, 4.0]
    worse = [each + math.log(1.1) for each in original]

    ratio = perplexity_ratio(worse, original)

    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1.1, 1.1, 1.1))


def test_pairs_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        perplexity_ratio([1.0, 2.0], [1.0])


def test_divergence_is_that_of_torch(tiny_llama: Any, tiny_texts: Texts) -> None:
    windows, other = tiny_texts.prose[:1], disturbed(tiny_llama, 0.3)

    followed = agreement.follow(other, windows, agreement.listen(tiny_llama, windows))

    with torch.inference_mode():
        p, q = (model(windows).logits[0, ::4].log_softmax(-1) for model in (tiny_llama, other))
    theirs = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
    assert followed.divergence[0] == pytest.approx(float(theirs), rel=0.01)


def test_a_model_that_answers_no_numbers_agrees_nowhere_and_passes_no_gate(
    folders: dict[str, Path],
    tiny_llama: Any,
    tiny_tokenizer: Any,
    tiny_texts: Texts,
    tmp_path: Path,
) -> None:
    tiny_llama.model.layers[1].mlp.down_proj.weight.data[3, 5] = math.nan
    tiny_llama.save_pretrained(tmp_path / "nan")
    tiny_tokenizer.save_pretrained(tmp_path / "nan")

    report = evaluate(tmp_path / "nan", folders["original"], tiny_texts, measures=QUICK)

    dialogue = report.candidates[0].dialogue
    assert dialogue.divergence.value == dialogue.ratio.value == math.inf
    assert dialogue.top_1.value == 0
    limits = {"perplexity": 1e9, "prose": 1e9, "kl": 1e9, "top1": 0.01}
    assert len(misses(report, limits)) == len(limits)
    write_report(report, tmp_path / "report")
    # JSON has no infinity, and what is read back must not look any better.
    kept = Report.model_validate_json((tmp_path / "report" / "report.json").read_bytes())
    assert len(misses(kept, limits)) == len(limits)
    with pytest.raises(InvalidInput, match=r"NaN.*'model\.layers\.1\.mlp\.down_proj\.weight'"):
        evaluate(folders["close"], tmp_path / "nan", tiny_texts, measures=QUICK)
    with pytest.raises(InvalidInput, match=r"NaN.*'model\.layers\.1\.mlp\.down_proj\.weight'"):
        load_model(tmp_path / "nan")


def test_a_loss_beyond_the_range_of_floats_is_an_infinite_perplexity() -> None:
    assert perplexity([800.0, 700.0]).value == math.inf
    assert perplexity_ratio([800.0, math.inf], [3.0, 3.0]).value == math.inf


def test_a_layer_of_zeros_has_no_error_until_it_differs(tiny_llama: Any) -> None:
    name = "model.layers.0.mlp.up_proj"
    zeros = copy.deepcopy(tiny_llama)
    zeros.get_submodule(name).weight.data.zero_()

    assert layer_errors(zeros, zeros)[name] == 0
    assert layer_errors(tiny_llama, zeros)[name] == math.inf
    assert layer_errors(zeros, tiny_llama)[name] == 1


def test_original_agrees_with_itself(reports: dict[str, Report]) -> None:
    row = reports["original"].candidates[0]

    assert row.dialogue.ratio.value == row.prose.ratio.value == 1
    assert row.dialogue.divergence.value == pytest.approx(0, abs=1e-4)
    assert row.dialogue.top_1.value == 1
    assert row.replies is not None
    assert row.replies.equal == 1
    assert row.replies.to_original.rouge_l.value == 1 or row.replies.agreement.value == 1
    assert set(row.layer_errors.values()) == {0.0}


def test_more_noise_costs_more_everywhere(reports: dict[str, Report]) -> None:
    close, far = (reports[name].candidates[0] for name in ("close", "far"))

    for domain in ("dialogue", "prose"):
        near, off = getattr(close, domain), getattr(far, domain)
        assert near.divergence.value < off.divergence.value
        assert near.top_1.value > off.top_1.value
    assert max(close.layer_errors.values()) < min(far.layer_errors.values())


def test_layers_of_models_of_other_depth_are_not_compared(
    reports: dict[str, Report], tiny_llama_maker: Callable[..., Any]
) -> None:
    assert reports["shallow"].candidates[0].layer_errors == {}
    assert layer_errors(tiny_llama_maker(layers=1), tiny_llama_maker()) == {}


def test_size_is_that_of_the_weights_alone(
    reports: dict[str, Report], folders: dict[str, Path]
) -> None:
    row = reports["shallow"].candidates[0]

    assert row.weight_bytes == (folders["shallow"] / "model.safetensors").stat().st_size
    assert row.size < 1


def test_a_vocabulary_that_is_padded_otherwise_is_compared_by_what_both_have(
    tiny_llama_maker: Callable[..., Any], tiny_texts: Texts
) -> None:
    windows = tiny_texts.prose[:2]
    original, padded = tiny_llama_maker(), tiny_llama_maker()
    padded.resize_token_embeddings(len(original.lm_head.weight) + 24, mean_resizing=False)
    padded.lm_head.weight.data[-24:] = 0
    for one, other in ((original, padded), (padded, original)):
        found = agreement.follow(other, windows, agreement.listen(one, windows))
        assert max(found.divergence) < 0.2
        assert min(found.first_equal) > 0.9


def test_a_model_with_another_tokenizer_is_refused(
    folders: dict[str, Path], tiny_texts: Texts, tmp_path: Path
) -> None:
    other = shutil.copytree(folders["close"], tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["e"], vocabulary["q"] = vocabulary["q"], vocabulary["e"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match=r"'other' has another tokenizer .*: [12] of \d+ tokens"):
        evaluate(other, folders["original"], tiny_texts, measures=QUICK)


def test_path_without_a_model_is_refused(folders: dict[str, Path], tiny_texts: Texts) -> None:
    with pytest.raises(InvalidInput, match=r"holds no model: expected a folder"):
        evaluate(folders["original"].parent, folders["original"], tiny_texts, measures=QUICK)


def test_gate_names_each_limit_that_is_missed(reports: dict[str, Report]) -> None:
    limits = {"size": 0.9, "kl": 1e-6, "top1": 1.0}

    said = misses(reports["close"], limits)

    assert len(said) == 3
    assert "close: size ratio 1, allowed at most 0.9." in said
    assert any("at least 1" in each for each in said)
    assert misses(reports["original"], {"perplexity": 1.0, "prose": 1.0, "size": 1.0}) == ()


def test_gate_refuses_a_limit_that_it_does_not_know(reports: dict[str, Report]) -> None:
    with pytest.raises(InvalidInput, match=r"'bleu'. Limits: perplexity, prose, size, kl, top1"):
        misses(reports["close"], {"bleu": 30})


def test_report_is_read_back_as_it_was_written(reports: dict[str, Report], tmp_path: Path) -> None:
    written = write_report(reports["far"], tmp_path, ["far: too far."])

    assert Report.model_validate_json((tmp_path / "report.json").read_text()) == reports["far"]
    assert {each.name for each in written} >= {"report.json", "report.md"}
    page = (tmp_path / "report.md").read_text()
    assert "far: too far." in page
    assert "6 windows of 64 tokens of prose" in page
    assert all(each.stat().st_size for each in written)
    assert json.loads((tmp_path / "report.json").read_text())["rows"][1]["name"] == "far"


SLOW = Speed(batch_1=10, batch_8=80, load_s=1, peak_bytes=1, load_average=0)
FAST = SLOW.model_copy(update={"batch_1": 16.0, "batch_8": 120.0})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"layer_errors": {"q": 0.0, "k": 0.001}}, ["exactly zero"]),
        ({"layer_errors": {"q": 0.0, "k": 0.1}}, []),
        ({"layer_errors": {}}, []),
        ({"layer_errors": {"q": 0.0}, "size": 0.61}, []),
        ({"layer_errors": {"q": 0.0}, "quantization": None}, []),
        ({"dialogue": 0.9}, ["adapted to the tuning domain"]),
        ({"speed": SLOW, "original_speed": SLOW}, ["1.00× at batch 1, 1.00× at batch 8"]),
        ({"speed": FAST, "original_speed": SLOW}, []),
        ({"speed": FAST, "original_speed": SLOW, "quantization": "gguf"}, ["dequantized"]),
    ],
)
def test_what_must_be_said_beside_a_row(changes: dict[str, Any], expected: list[str]) -> None:
    row: dict[str, Any] = {
        "quantization": "compressed-tensors",
        "size": 0.43,
        "layer_errors": {"q": 0.1},
        "dialogue": 1.0,
    }

    said = remarks_of(**row | changes)

    assert len(said) == len(expected)
    assert all(text in one for one, text in zip(said, expected, strict=True))


def row(name: str, ratio: float, weight_bytes: int, rate: float | None = None) -> Row:
    one = Figure(value=ratio, low=ratio, high=ratio)
    domain = Domain(perplexity=one, ratio=one, divergence=one, top_1=one)
    speed = SLOW.model_copy(update={"batch_1": rate}) if rate else None
    return Row(
        name=name,
        weight_bytes=weight_bytes,
        size=1,
        quantization=None,
        dialogue=domain,
        prose=domain,
        speed=speed,
    )


def test_frontier_keeps_what_no_other_beats_everywhere() -> None:
    rows = [row("a", 1.0, 100), row("b", 1.1, 50), row("c", 1.2, 60), row("d", 1.0, 100)]

    assert [each.name for each in on_frontier(rows)] == ["a", "b", "d"]


def test_speed_alone_puts_a_row_on_the_frontier() -> None:
    rows = [row("a", 1.0, 100, 10), row("b", 1.1, 100, 20)]

    assert len(on_frontier(rows)) == 2


def test_page_shows_speed_as_ratios_within_the_run(reports: dict[str, Report]) -> None:
    rows = [row("original", 1.0, 100, 10), row("b", 1.1, 50, 20)]

    page = markdown(reports["close"].model_copy(update={"rows": tuple(rows)}))

    assert "20.0 (2.00×)" in page
