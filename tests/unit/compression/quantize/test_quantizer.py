"""The affine quantizer and its observers, on random numbers of many seeds."""

import pytest

torch = pytest.importorskip("torch")

from turnmill.compression.quantize.affine import (  # noqa: E402
    Grid,
    PackedWeight,
    dequantize,
    quantize,
)
from turnmill.compression.quantize.observers import (  # noqa: E402
    OBSERVERS,
    minmax,
    mse,
    percentile,
    squared_error,
    storable,
)
from turnmill.compression.quantize.rtn import round_to_nearest  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

GRIDS = [
    Grid(bits, symmetric, group)
    for bits, group in ((2, 16), (4, "tensor"), (4, 16), (8, "channel"))
    for symmetric in (True, False)
]
SEEDS = range(5)


def matrix(seed: int, rows: int = 24, columns: int = 64) -> "torch.Tensor":
    """Normal numbers, scaled by a different power of ten for each seed, some rows one-sided."""
    numbers = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    numbers[::5] = numbers[::5].abs()
    return numbers * 10.0 ** (2 * seed - 4)


def halved(scales: "torch.Tensor", weight: "torch.Tensor", grid: Grid) -> "torch.Tensor":
    """Return half a step for each weight, with room for float32's own rounding."""
    wide = scales.unsqueeze(-1).expand_as(grid.split(weight)).reshape(weight.shape)
    return wide * (0.5 + 1e-4)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_error_is_at_most_half_a_step_inside_the_range(grid: Grid, seed: int) -> None:
    weight = matrix(seed)
    for scales, zeros in (minmax(weight, grid), storable(minmax(weight, grid))):
        error = (
            dequantize(quantize(weight, scales, zeros, grid), scales, zeros, grid) - weight
        ).abs()
        # An asymmetric range moves by up to half a step when its zero becomes an integer.
        allowed = halved(scales, weight, grid) * (1 if grid.symmetric else 2)
        assert bool((error <= allowed).all())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("observer", OBSERVERS)
def test_real_zero_stays_exactly_zero(grid: Grid, observer: str) -> None:
    weight = matrix(1)
    weight[:, ::3] = 0
    rounded = round_to_nearest(weight, grid, observer).dense()
    assert bool((rounded[:, ::3].abs() <= weight.abs().max() * 1e-6).all())
    if grid.symmetric:
        assert bool((rounded[:, ::3] == 0).all())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_quantizing_twice_changes_nothing(grid: Grid, seed: int) -> None:
    weight = matrix(seed)
    scales, zeros = minmax(weight, grid)
    once = quantize(weight, scales, zeros, grid)
    again = quantize(dequantize(once, scales, zeros, grid), scales, zeros, grid)
    assert torch.equal(once, again)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("value", [0.0, 3.25, -3.25, 1e-30, 1e38, -1e38])
def test_constant_matrices_survive(grid: Grid, observer: str, value: float) -> None:
    weight = torch.full((4, 32), value)
    packed = round_to_nearest(weight, grid, observer)
    assert bool(packed.scales.isfinite().all())
    assert bool((packed.scales > 0).all())
    rounded = packed.dense()
    assert bool(rounded.isfinite().all())
    steps = 1 << grid.bits
    assert bool(((rounded - weight).abs() <= abs(value) * 2 / steps + 1e-30).all())


def test_infinite_weights_take_the_outermost_integers() -> None:
    weight = torch.tensor([[float("inf"), -float("inf"), 1.0, 0.0]])
    integers = quantize(weight, *minmax(weight.nan_to_num(posinf=2, neginf=-2), Grid(4)), Grid(4))
    assert integers.tolist()[0][:2] == [7, -8]


def test_the_two_forms_of_the_formula_agree() -> None:
    """round((x − z) / s) with z = −s·Z is round(x / s) + Z."""
    grid, weight = Grid(8, symmetric=False), matrix(2)
    scales, zeros = minmax(weight, grid)
    packed = PackedWeight(quantize(weight, scales, zeros, grid), scales, zeros, grid)
    points = packed.zero_points()
    integer_form = ((weight / scales).round() + points).clamp(grid.low, grid.high)
    off_by_one = (integer_form - packed.integers).abs()
    assert off_by_one.max() <= 1, "float32 may round a tie the other way"
    assert (off_by_one == 0).float().mean() > 0.99


def test_weights_on_a_four_bit_grid_with_real_zeros_come_back_exactly() -> None:
    """GGUF's Q4_1: w = d·q + m with 16-bit d and m, blocks of 32, q of 0 to 15."""
    random = torch.Generator().manual_seed(3)
    grid = Grid(4, symmetric=False, group=32)
    steps = torch.rand(16, 4, generator=random).half().float() * 0.1 + 0.01
    least = -torch.rand(16, 4, generator=random).half().float()
    whole = torch.randint(0, 16, (16, 128), generator=random)
    weight = whole * steps.repeat_interleave(32, 1) + least.repeat_interleave(32, 1)
    zeros = least + 8 * steps
    integers = quantize(weight, steps, zeros, grid)
    assert torch.equal(integers.long(), whole - 8)
    assert torch.allclose(dequantize(integers, steps, zeros, grid), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_mse_observer_is_never_worse_than_minmax(grid: Grid) -> None:
    weight = matrix(2)
    weight[:, 0] *= 20
    importance = torch.rand(64)
    for by in (None, importance):
        best = squared_error(weight, mse(weight, grid, by), grid, by)
        plain = squared_error(weight, minmax(weight, grid), grid, by)
        assert bool((best <= plain).all())


def test_the_percentile_observer_clips_the_outermost_numbers() -> None:
    weight = torch.randn(1, 10_000, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 1000
    grid = Grid(8)
    assert percentile(weight, grid, 0.999)[0].item() < minmax(weight, grid)[0].item() / 100


def test_groups_that_do_not_divide_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="Groups of 100 do not divide rows of 64"):
        round_to_nearest(matrix(0), Grid(4, True, 100))


def test_size_counts_packed_bits_and_scales() -> None:
    packed = round_to_nearest(matrix(0, 16, 128), Grid(4, True, 64))
    assert packed.bytes == 16 * 128 // 2 + 16 * 2 * 2
