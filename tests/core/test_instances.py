import pytest
import torch

from instseg.core.geometry import InputGeometry
from instseg.core.instances import Instances
from instseg.core.masks import Masks

SIZE = (40, 60)
BOXES = torch.tensor([[0.0, 0, 30, 20], [10.5, 5, 70, 39]])


def boxed(count: int = 2) -> Instances:
    return Instances(torch.linspace(0.9, 0.5, count), torch.arange(count), boxes=BOXES[:count], image_size=SIZE)


def masked() -> Instances:
    pixels = torch.zeros(2, *SIZE)
    pixels[0, 3:9, 4:20], pixels[1, 10:30, 30:55] = 1, 1
    return Instances(torch.tensor([0.9, 0.5]), torch.tensor([0, 1]), Masks.from_bool(pixels))


def test_objects_without_masks_have_the_predicted_boxes_and_the_size_of_their_image() -> None:
    found = boxed()
    assert found.masks is None and found.image_size == SIZE and torch.equal(found.boxes, BOXES)
    assert repr(found) == "Instances(2 boxes in 40x60 pixels)"
    assert torch.equal(found[1].boxes, BOXES[1:]) and found[found.scores > 0.6].labels.tolist() == [0]
    best = found.best(1)
    assert len(best) == 1 and best.truncated and not found.truncated and best.image_size == SIZE
    assert torch.equal(found.to("cpu").boxes, BOXES)


def test_boxes_are_the_extents_of_the_masks_unless_they_were_predicted() -> None:
    found = masked()
    assert found.boxes.tolist() == [[4, 3, 20, 9], [30, 10, 55, 30]] and found.predicted_boxes is None
    both = Instances(found.scores, found.labels, found.masks, boxes=BOXES)
    assert torch.equal(both.boxes, BOXES) and torch.equal(both[[1]].boxes, BOXES[1:])


def test_boxes_are_scaled_moved_and_clipped_to_what_the_input_shows() -> None:
    view = InputGeometry(SIZE, (80, 90), (300, 400), (100, 200))
    found = boxed().to_image(view)
    assert found.image_size == (300, 400)
    assert found.boxes.tolist() == [[200, 100, 245, 140], [215.75, 110, 290, 178]]
    assert found.scores.tolist() == boxed().scores.tolist()
    masks = masked().to_image(view)
    assert masks.image_size == (300, 400) and masks.boxes[0].tolist() == [206, 106, 230, 118]


def test_results_for_one_image_are_joined_in_order() -> None:
    joined = Instances.cat([boxed(), boxed(1)])
    assert torch.equal(joined.boxes, BOXES[[0, 1, 0]]) and joined.masks is None and joined.image_size == SIZE
    parts = [masked(), masked().best(1)]
    joined = Instances.cat(parts)
    assert len(joined) == 3 and joined.truncated
    assert joined.masks is not None and joined.masks.areas().tolist() == [96, 500, 96]


def test_results_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="have none"):
        Instances.cat([boxed(), masked()])
    with pytest.raises(ValueError, match="different images"):
        Instances.cat([boxed(), boxed().to_image(InputGeometry(SIZE, (80, 90), (80, 90)))])
    with pytest.raises(ValueError, match="2 scores, 2 labels, 1 boxes"):
        Instances(torch.zeros(2), torch.zeros(2), boxes=BOXES[:1], image_size=SIZE)
    with pytest.raises(ValueError, match="the size of their image"):
        Instances(torch.zeros(2), torch.zeros(2), boxes=BOXES)
    found = masked()
    with pytest.raises(ValueError, match=r"masks of \(40, 60\) for an image of \(1, 1\)"):
        Instances(found.scores, found.labels, found.masks, image_size=(1, 1))
