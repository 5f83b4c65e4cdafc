import pytest
import torch

from instseg.losses.dice import dice_loss
from instseg.losses.focal import category_focal_loss


def test_dice_is_nearly_zero_for_a_perfect_mask_and_one_for_a_disjoint_or_empty_one():
    target = torch.zeros(2, 8, 8)
    target[0, :4] = 1
    assert dice_loss(target[:1], target[:1]) < 1e-3
    assert dice_loss(1 - target[:1], target[:1]) == 1
    assert dice_loss(torch.full((1, 8, 8), 0.5), target[1:]) == 1


def test_dice_adds_its_constant_to_both_sums_of_squares():
    p, q = torch.full((1, 2, 2), 0.5), torch.tensor([[[1, 0], [0, 1]]])
    torch.testing.assert_close(dice_loss(p, q), torch.tensor([1 - 2 * 1.0 / (1 + 2 + 2e-3)]))


def test_dice_of_a_large_map_in_half_precision_is_finite_and_exact():
    p = torch.ones(1, 400, 400, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = dice_loss(p, torch.ones(1, 400, 400, dtype=torch.uint8))
    assert loss.dtype == torch.float32 and float(loss) < 1e-6


def test_the_focal_loss_is_the_formula_over_positives_plus_one():
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0], [-3.0, 1.0]])
    labels = torch.tensor([0, 2, 1])  # 2 is background
    p = logits.sigmoid()
    hot = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    positive = -0.25 * (1 - p) ** 2 * p.log()
    negative = -0.75 * p**2 * (1 - p).log()
    expected = (hot * positive + (1 - hot) * negative).sum() / (2 + 1)
    torch.testing.assert_close(category_focal_loss(logits, labels, 2), expected)


def test_dice_of_a_matte_against_itself_is_nearly_zero_and_more_for_any_other():
    matte = torch.linspace(0, 1, 4096).view(1, 64, 64)
    own = dice_loss(matte, matte)
    assert 0 <= own < 1e-5
    for other in (matte**2, matte.sqrt(), (matte > 0.5).float(), 0.9 * matte):
        assert dice_loss(other, matte) > own
    p = torch.tensor([[[0.2, 0.7]]])
    q = torch.tensor([[[0.5, 0.25]]])
    expected = 1 - 2 * (0.1 + 0.175) / (0.04 + 0.49 + 0.25 + 0.0625 + 2e-3)
    torch.testing.assert_close(dice_loss(p, q), torch.tensor([expected]))


@pytest.mark.parametrize("kind", [torch.bool, torch.uint8, torch.float32, torch.float64])
def test_dice_of_binary_masks_is_what_it_was_bit_for_bit(kind):
    draw = torch.Generator().manual_seed(1)
    p, q = torch.rand(5, 37, 41, generator=draw), torch.rand(5, 37, 41, generator=draw) < 0.3
    a, b = p.flatten(1), q.flatten(1).float()
    expected = 1 - 2 * (a * b).sum(dim=1) / ((a * a).sum(dim=1) + b.sum(dim=1) + 2e-3)
    assert torch.equal(dice_loss(p, q.to(kind)), expected)
