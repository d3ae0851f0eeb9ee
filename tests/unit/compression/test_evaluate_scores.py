"""Intervals, BLEU and ROUGE, and which models are on the frontier: no model is run."""

import random
import subprocess
import sys

import pytest

pytest.importorskip("sacrebleu")

from turnmill.compression.evaluate import intervals as resampling
from turnmill.compression.evaluate.agreement import equal_share, reply_agreement
from turnmill.compression.evaluate.intervals import bootstrap, bootstrap_sums, mean, ratio
from turnmill.compression.evaluate.text_scores import score_texts, split_words


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    draw = random.Random(3)
    intervals = [
        bootstrap([draw.gauss(10, 2) for _ in range(40)], mean, seed=index) for index in range(60)
    ]

    covered = sum(each.low <= 10 <= each.high for each in intervals)

    assert 50 <= covered <= 60


def test_interval_is_the_same_in_every_run() -> None:
    samples = [1.0, 2.0, 4.0, 8.0]

    assert bootstrap(samples, mean) == bootstrap(samples, mean)
    assert bootstrap(samples, mean).low < 3.75 < bootstrap(samples, mean).high


def test_many_groups_are_drawn_as_few_are_without_a_pass_of_python_for_each_resample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(1)
    groups = [[float(draw.random() < 0.2), float(draw.randrange(1, 9))] for _ in range(1200)]
    many = bootstrap_sums(groups, ratio)
    monkeypatch.setattr(resampling, "find_spec", lambda name: None)
    assert bootstrap_sums(groups, ratio) == many
    monkeypatch.undo()
    monkeypatch.delattr(resampling, "_draws")
    assert bootstrap_sums(groups, ratio) == many
    equal = bootstrap_sums([[1.0, 2.0]] * 1200, ratio)
    assert (equal.value, equal.low, equal.high) == (0.5, 0.5, 0.5)


def test_bleu_is_sacrebleus_corpus_score() -> None:
    from sacrebleu.metrics import BLEU

    replies = ["the parcel is late today", "we are sorry for the long delay", "thank you"]
    references = ["your parcel is late today", "we are sorry for the delay", "thank you very much"]

    scores = score_texts(replies, references)

    theirs = BLEU().corpus_score(replies, [references]).score
    assert scores.bleu.value == pytest.approx(theirs)
    assert scores.bleu.low <= scores.bleu.value <= scores.bleu.high
    assert scores.tokenizer == "13a"


@pytest.mark.parametrize(
    ("reply", "reference", "tokenizer"),
    [
        ("您好，订单已经发出。", "您好，订单已经发出。", "zh"),
        ("The order has been shipped.", "The order has been shipped.", "13a"),
        ("您的 order 已经发出", "您的 order 已经发出", "zh"),
        ("ご注文は明日届きます。", "ご注文は明日届きます。", "char"),
        ("สินค้าจะมาถึงพรุ่งนี้", "สินค้าจะมาถึงพรุ่งนี้", "char"),
    ],
)
def test_equal_texts_score_full_marks_in_any_language(
    reply: str, reference: str, tokenizer: str
) -> None:
    scores = score_texts([reply], [reference])

    assert scores.bleu.value == pytest.approx(100)
    assert scores.rouge1.value == scores.rouge_l.value == pytest.approx(1)
    assert scores.tokenizer == tokenizer


def test_chinese_is_scored_by_characters() -> None:
    scores = score_texts(["订单明天发出"], ["订单今天发出"])

    assert split_words("您的Order发出") == ["您", "的", "order", "发", "出"]
    assert scores.rouge1.value == pytest.approx(5 / 6)
    assert 0 < scores.bleu.value < 100


@pytest.mark.parametrize(
    ("reply", "reference"),
    [
        ("ありがとうございますね", "ありがとうございますよ"),
        ("コーヒーメーカー2", "コーヒーメーカー3"),
        ("ご注文は明日届きます。", "ご注文は今日届きます。"),
        ("ｶｽﾀﾏｰｻﾎﾟｰﾄﾃﾞｽ", "ｶｽﾀﾏｰｻﾎﾟｰﾄﾃﾞﾈ"),
        ("ขอบคุณมากค่ะ", "ขอบคุณมากครับ"),
        ("ຂອບໃຈຫຼາຍໆ", "ຂອບໃຈຫຼາຍ"),
        ("បាទអរគុណច្រើន", "បាទអរគុណណាស់"),
        ("ကျေးဇူးတင်ပါတယ်", "ကျေးဇူးတင်ပါသည်"),
        ("ཐུགས་རྗེ་ཆེ་", "ཐུགས་རྗེ་ཆུང་"),
    ],
)
def test_scripts_without_spaces_are_scored_by_characters(reply: str, reference: str) -> None:
    from sacrebleu.metrics import BLEU

    scores = score_texts([reply], [reference])

    theirs = BLEU(tokenize="char", effective_order=True).corpus_score([reply], [[reference]])
    assert scores.bleu.value == pytest.approx(theirs.score)
    assert "|tok:char|" in scores.signatures["bleu"]
    assert 40 < scores.bleu.value < 100
    assert 0.5 < scores.rouge_l.value <= scores.rouge1.value < 1


def test_few_letters_of_another_script_do_not_choose_its_tokenizer() -> None:
    english = "Please say ありがとう to all of the team that has packed and sent the parcels"
    assert score_texts(["a"], [english]).tokenizer == "13a"
    chinese = "您的订单已经由快递员发出の并且明天到达"
    assert score_texts(["a"], [chinese]).tokenizer == "zh"


def test_words_beside_scripts_without_spaces_stay_whole() -> None:
    assert split_words("Orderは42個、ค่ะ") == ["order", "は", "42", "個", "ค", "่", "ะ"]


def test_empty_reply_scores_nothing() -> None:
    scores = score_texts([""], ["thank you"])

    assert scores.bleu.value == scores.rouge_l.value == 0


@pytest.mark.parametrize(("replies", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_scores_of_nothing_or_of_unequal_lists_are_refused(
    replies: list[str], references: list[str]
) -> None:
    with pytest.raises(ValueError, match="references"):
        score_texts(replies, references)


def test_scores_of_texts_need_no_torch() -> None:
    program = (
        "import sys; from turnmill.compression.evaluate.text_scores import score_texts\n"
        "score_texts(['a b'], ['a b']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout.strip() == "False", done.stderr


def test_replies_agree_up_to_the_first_difference() -> None:
    replies = ["the parcel is late", "yes", "", "yes sir"]
    originals = ["the parcel was late", "yes", "", "yes"]

    assert reply_agreement(replies, originals) == [0.5, 1.0, 1.0, 0.5]
    assert equal_share(replies, originals) == 0.5
