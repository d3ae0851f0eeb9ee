"""Our logistic regression and its measures are those of the books."""

from random import Random

import pytest

from turnmill.producer.knowledge.calibration.fitting import (
    Example,
    Fitted,
    Scored,
    Unreachable,
    auroc,
    calibrate,
    choose_threshold,
    fit,
    measure,
    wilson,
)


def drawn(count: int, *, noise: float = 1.0) -> list[Example]:
    """Examples that are answered more often the higher x is; y says nothing."""
    random = Random(7)
    examples = []
    for group in range(count):
        x, y = random.gauss(), random.gauss()
        is_answered = x + noise * random.gauss() > 0
        examples.append(Example({"x": x, "y": y, "same": 1.0}, is_answered, group))
    return examples


def test_a_fit_has_no_gradient_left() -> None:
    examples = drawn(400)
    logistic = fit(examples)
    assert logistic.names == ("same", "x", "y")
    rows = [logistic.standardize(each.features) for each in examples]
    errors = [logistic.probability(each.features) - each.is_answered for each in examples]
    for place, weight in enumerate(logistic.weights):
        gradient = sum(e * row[place] for e, row in zip(errors, rows, strict=True))
        assert gradient + (weight if place else 0.0) == pytest.approx(0.0, abs=1e-5)
    assert logistic.weights[2] > 10 * abs(logistic.weights[3])


def test_labels_without_a_mistake_give_finite_weights() -> None:
    logistic = fit(drawn(100, noise=0.0))
    assert max(map(abs, logistic.weights)) < 20
    assert logistic.probability({"x": 3.0, "y": 0.0, "same": 1.0}) > 0.99
    assert logistic.probability({}) == 0.0


def test_the_threshold_is_the_lowest_with_the_wanted_precision() -> None:
    values = [(0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, True), (0.5, False)]
    scored = [Scored(p, label, 0) for p, label in values]
    assert choose_threshold(scored, 1.0) == 0.8
    assert choose_threshold(scored, 0.75) == 0.6
    assert choose_threshold(scored, 0.6) == 0.5
    assert choose_threshold([Scored(0.9, False, 0)], 0.5) is None


def test_precision_is_measured_where_it_was_not_chosen() -> None:
    fitted = calibrate(drawn(2000), wanted=0.9)
    assert isinstance(fitted, Fitted)
    measured = fitted.measured
    assert measured.precision_low < 0.9 < measured.precision_high
    assert measured.answerable + measured.unanswerable == 2000
    assert 0.3 < measured.coverage < 0.9
    random = Random(1)
    chance = [Example({"x": random.random()}, random.random() < 0.5, n) for n in range(400)]
    refused = calibrate(chance, wanted=0.95)
    assert isinstance(refused, Unreachable)
    assert refused.most < 0.95


def test_with_a_margin_the_lower_bound_must_be_as_wanted() -> None:
    scored = [Scored(1 - n / 200, n % 10 != 9, n % 5) for n in range(200)]
    assert choose_threshold(scored, 0.9) == scored[-1].probability
    assert choose_threshold(scored, 0.85, 1.645) == scored[-1].probability
    assert choose_threshold(scored, 0.9, 1.645) is None
    plain, sure = (calibrate(drawn(2000), 0.9, margin=each) for each in (0.0, 1.645))
    assert isinstance(plain, Fitted)
    assert isinstance(sure, Fitted)
    assert sure.threshold > plain.threshold
    assert sure.measured.precision > 0.9
    few = [each._replace(is_answered=True) for each in drawn(20)] + drawn(4)
    refused = calibrate(few, 0.95, margin=1.645)
    assert isinstance(refused, Unreachable)
    assert 0.7 < refused.most < 0.95
    assert refused.is_bound


def test_a_refusal_names_no_precision_that_would_be_refused_again() -> None:
    assert Unreachable(0.896, is_bound=True).said == "89% at most are sure"
    assert Unreachable(0.29, is_bound=False).said == "29% at most were measured"
    # A few lucky ones choose the thresholds, and the others tell: half are answered.
    random = Random(1)
    lucky = [Example({"x": random.random()}, random.random() < 0.5, n) for n in range(400)]
    refused = calibrate(lucky, wanted=0.9)
    assert isinstance(refused, Unreachable)
    assert refused.is_bound
    assert refused.most < 0.5


def test_precision_at_half_and_half_does_not_depend_on_who_asks() -> None:
    asked = [Scored(0.9, True, 0)] * 8 + [Scored(0.1, True, 0)] * 2
    foreign = [Scored(0.9, False, 0)] * 2 + [Scored(0.1, False, 0)] * 8
    for count in (1, 3):
        scored = asked + foreign * count
        measured = measure(scored, [each for each in scored if each.probability > 0.5])
        assert measured.precision == pytest.approx(8 / (8 + 2 * count))
        assert measured.balanced == pytest.approx(0.8)


def test_wilsons_interval_and_the_area_under_the_curve() -> None:
    # Newcombe 1998, https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert auroc([Scored(0.9, True, 0), Scored(0.1, False, 0)]) == 1.0
    assert auroc([Scored(0.5, True, 0), Scored(0.5, False, 0)]) == 0.5
    assert auroc([Scored(0.2, True, 0), Scored(0.5, False, 0), Scored(0.1, False, 0)]) == 0.5
