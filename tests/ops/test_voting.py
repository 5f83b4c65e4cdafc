import pytest
import torch

from instseg.ops.voting import vote_weights

IOU = torch.tensor([[1.0, 0.8, 0.6, 0.9], [0.8, 1.0, 0.7, 0.9], [0.6, 0.7, 1.0, 0.2], [0.9, 0.9, 0.2, 1.0]])
LABELS = torch.tensor([0, 0, 0, 1])
SCORES = torch.tensor([0.9, 0.3, 0.6, 0.8])


def votes(scheme, threshold, chosen=(0,)):
    return vote_weights(scheme, threshold, IOU, LABELS, SCORES, torch.tensor(chosen))


@pytest.mark.parametrize(
    ("scheme", "weights"),
    [("average", [1.0, 1.0, 0.0, 0.0]), ("score", [0.9, 0.3, 0.0, 0.0]), ("iou", [1.0, 0.8, 0.0, 0.0])],
)
def test_candidates_of_the_class_that_overlap_enough_vote(scheme, weights):
    expected = torch.tensor([weights]) / sum(weights)
    torch.testing.assert_close(votes(scheme, 0.8), expected)  # the threshold itself counts


def test_a_mask_always_votes_for_itself():
    torch.testing.assert_close(votes("average", 1.0, (3, 2)), torch.eye(4)[[3, 2]])


def test_nothing_found_has_no_votes():
    assert vote_weights("score", 0.5, IOU, LABELS, SCORES, torch.zeros(0, dtype=torch.int64)).shape == (0, 4)
