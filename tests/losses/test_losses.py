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
