"""Three methods that are as unlike SOLO as instance heads come, in a few thousand parameters each.

They stand for what the house must hold: a detector of boxes, a two-stage network, a network of mattes. Nothing outside
this file knows them; :data:`TOYS` is what registers them in the zoo.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instseg.core.instances import Instances
from instseg.core.masks import Masks
from instseg.models.base import ClassLayout, Found, ImageBatch, LossTerms, Need, Net, Step, Target
from instseg.models.config import Fraction, InferenceSettings, ModelConfig, Positive
from instseg.models.zoo import ModelEntry

WINDOW = 7  # cells a side of what a head sees of a proposal, and of its mask
CANDIDATES = 300  # objects of an image that are compared
STRIDE = 8  # pixels of the input for each location


class ToySettings(InferenceSettings):
    """What decoding does."""

    score: Fraction = 0.05  # objects score at least this
    overlap: Fraction = 0.5  # IoU above which the lesser of two objects of a class is dropped
    proposals: Positive = 20  # that the second stage looks at


class ToyConfig(ModelConfig, ToySettings):
    """One field of the architecture beside the settings."""

    backbone: str = "none"
    width: Positive = 16


# --- boxes -----------------------------------------------------------------------------------------------------------


def locations(maps: Tensor) -> Tensor:
    """(h * w, 2) xy of the centers of the cells of maps (B, E, h, w), pixels of the input, rows first."""
    sides = (torch.arange(side, device=maps.device) for side in maps.shape[-2:])
    y, x = torch.meshgrid(*sides, indexing="ij")
    return (torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * STRIDE


def around(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes (N, 4) xyxy that reach left, up, right and down by ``distances`` (N, 4) in cells."""
    return torch.cat([points - distances[:, :2] * STRIDE, points + distances[:, 2:] * STRIDE], dim=1)


def clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes inside an image of ``size`` (h, w)."""
    return boxes.clamp(min=0).minimum(boxes.new_tensor([size[1], size[0]]).repeat(2))


def iou(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) of boxes (N, 4) and (M, 4)."""
    inner = (torch.minimum(a[:, None, 2:], b[:, 2:]) - torch.maximum(a[:, None, :2], b[:, :2])).clamp(min=0).prod(-1)
    area = [(box[:, 2:] - box[:, :2]).clamp(min=0).prod(-1) for box in (a, b)]
    return inner / (area[0][:, None] + area[1] - inner).clamp(min=1e-6)


def kept(boxes: Tensor, scores: Tensor, labels: Tensor, settings: ToySettings, cap: int) -> Tensor:
    """Indices of the objects that stay, best first, at most one more than ``cap``."""
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] >= settings.score][:CANDIDATES]
    suppress = (iou(boxes[order], boxes[order]) > settings.overlap) & (labels[order, None] == labels[order])
    chosen: list[int] = []
    for i, row in enumerate(suppress.tolist()):
        if not any(row[j] for j in chosen):
            chosen.append(i)
    return order[torch.tensor(chosen[: cap + 1], dtype=torch.int64, device=order.device)]


def trunk(width: int) -> nn.Sequential:
    """A map (B, width, H / 8, W / 8) of the pixels."""
    layers: list[nn.Module] = []
    for inputs in (3, width, width):
        layers += [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1), nn.ReLU())


def sizes_of(sizes: Tensor) -> list[tuple[int, int]]:
    """(h, w) of each image."""
    return [(int(h), int(w)) for h, w in sizes.tolist()]


@dataclass(frozen=True)
class BoxOutputs:
    """(B, C, h, w) logits of the classes, (B, 4, h, w) distances in cells, (B, 2) sizes."""

    cls_logits: Tensor
    distances: Tensor
    sizes: Tensor


class ToyBoxes(Net[BoxOutputs]):
    """Each location inside an object predicts its class and its box, as in FCOS. It has never seen a mask."""

    stride: ClassVar[int] = 16
    needs: ClassVar[frozenset[Need]] = frozenset()

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk(config.width)
        self.cls = nn.Conv2d(config.width, config.num_classes, 3, padding=1)
        self.box = nn.Conv2d(config.width, 4, 3, padding=1)
        nn.init.constant_(self.cls.bias, -2.0)  # type: ignore[arg-type]

    def forward(self, batch: ImageBatch) -> BoxOutputs:
        features = self.trunk(batch.pixels)
        return BoxOutputs(self.cls(features), F.softplus(self.box(features)), batch.sizes)

    def loss(self, outputs: BoxOutputs, targets: Sequence[Target], step: Step) -> LossTerms:
        points = locations(outputs.cls_logits)
        classes, boxes, positives = [], [], outputs.cls_logits.new_zeros(())
        for logits, distances, target in zip(outputs.cls_logits, outputs.distances, targets, strict=True):
            assert target.shapes is None  # nobody makes what is not asked for
            scores, reach = logits.float().flatten(1).T, distances.float().flatten(1).T
            wanted = torch.zeros_like(scores)
            if len(target):
                sides = torch.cat([points[:, None] - target.boxes[:, :2], target.boxes[:, 2:] - points[:, None]], dim=2)
                areas = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(-1)
                cost = torch.where(sides.amin(-1) > 0, areas, torch.inf)  # (locations, N)
                least, owner = cost.min(dim=1)
                inside = least.isfinite().nonzero()[:, 0]
                wanted[inside, target.labels[owner[inside]]] = 1
                boxes.append((reach[inside] - sides[inside, owner[inside]] / STRIDE).abs().sum())
                positives = positives + len(inside)
            classes.append(F.binary_cross_entropy_with_logits(scores, wanted, reduction="sum"))
        normalizer = step.mean(positives).clamp(min=1)
        terms = {"loss_cls": torch.stack(classes).sum() / normalizer}
        terms["loss_box"] = (torch.stack(boxes).sum() if boxes else outputs.distances.float().sum() * 0) / normalizer
        return LossTerms(terms, {"positives": positives})

    def decode(self, outputs: BoxOutputs) -> list[Found]:
        points = locations(outputs.cls_logits)
        found = []
        parts = zip(outputs.cls_logits, outputs.distances, sizes_of(outputs.sizes), strict=True)
        for logits, distances, size in parts:
            scores, labels = logits.float().sigmoid().flatten(1).max(dim=0)
            boxes = clipped(around(points, distances.float().flatten(1).T), size)
            chosen = kept(boxes, scores, labels, self.config, self.config.max_instances)
            instances = Instances(scores[chosen], labels[chosen], boxes=boxes[chosen], image_size=size)
            found.append(Found(instances.best(self.config.max_instances), chosen[: self.config.max_instances]))
        return found

    def class_layers(self) -> Mapping[str, ClassLayout]:
        return {"cls.weight": ClassLayout(), "cls.bias": ClassLayout()}


# --- two stages ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StageOutputs:
    """(B, E, h, w) features, (B, 1, h, w) objectness, (B, 4, h, w) distances in cells, (B, 2) sizes."""

    features: Tensor
    objectness: Tensor
    distances: Tensor
    sizes: Tensor


class ToyTwoStage(Net[StageOutputs]):
    """Proposals around anchors, then a class, a box for each class and a mask in the box, as in Mask R-CNN.

    The heads run in ``loss`` on sampled proposals and in ``decode`` on the best. The mask head rests in the first
    epoch. An image whose objects have no shapes trains all but the mask head.
    """

    stride: ClassVar[int] = 32
    needs: ClassVar[frozenset[Need]] = frozenset()
    optional: ClassVar[frozenset[Need]] = frozenset({"outlines"})
    may_leave_unused: ClassVar[bool] = True

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        c, width = config.num_classes, config.width
        self.trunk = trunk(width)
        self.rpn = nn.Conv2d(width, 5, 3, padding=1)
        self.shared = nn.Linear(width * WINDOW * WINDOW, 32)
        self.cls = nn.Linear(32, c + 1)  # the last is background
        self.box = nn.Linear(32, 4 * c)
        self.mask = nn.Conv2d(width, c, 3, padding=1)
        nn.init.normal_(self.box.weight, std=0.001)
        self.anchors: dict[tuple[int, int, torch.device], Tensor] = {}

    def forward(self, batch: ImageBatch) -> StageOutputs:
        features = self.trunk(batch.pixels)
        objectness, distances = self.rpn(features).split([1, 4], dim=1)
        return StageOutputs(features, objectness, distances, batch.sizes)

    def loss(self, outputs: StageOutputs, targets: Sequence[Target], step: Step) -> LossTerms:
        sums: dict[str, list[Tensor]] = {name: [] for name in ("objectness", "proposal", "cls", "box", "mask")}
        proposals = self._proposals(outputs)
        sampled, with_masks = 0, 0
        for i, target in enumerate(targets):
            boxes = target.boxes
            sums["objectness"].append(self._objectness_loss(outputs, i, boxes))
            sums["proposal"].append(self._proposal_loss(outputs, i, boxes))
            chosen, owner = self._sample(torch.cat([proposals[i][0], boxes]), boxes, step)
            sampled += len(chosen)
            cells = crop(outputs.features[i], chosen)
            scores, deltas = self._classify(cells)
            positive = (owner >= 0).nonzero()[:, 0]
            labels = torch.full_like(owner, self.config.num_classes)
            labels[positive] = target.labels[owner[positive]]
            sums["cls"].append(F.cross_entropy(scores, labels, reduction="sum") / max(1, len(labels)))
            wanted = encode(chosen[positive], boxes[owner[positive]])
            mine = deltas[positive, labels[positive]]
            sums["box"].append((mine - wanted).abs().sum() / max(1, len(positive)))
            if step.epoch and target.shapes is not None and len(positive):
                with_masks += len(positive)
                logits = self.mask(cells[positive]).float()[torch.arange(len(positive)), labels[positive]]
                shapes = target.shapes[owner[positive]].in_boxes(chosen[positive], WINDOW)
                sums["mask"].append(F.binary_cross_entropy_with_logits(logits, shapes.float()))
        zero = outputs.features.new_zeros((), dtype=torch.float32)
        losses = {f"loss_{k}": torch.stack(v).sum() / len(targets) if v else zero for k, v in sums.items()}
        logs = {"sampled": zero + sampled, "with_masks": zero + with_masks}
        return LossTerms(losses, logs)

    def _anchors(self, outputs: StageOutputs) -> Tensor:
        """(h * w, 4) distances in cells of a fixed box around each location, which a run keeps."""
        h, w = outputs.objectness.shape[-2:]
        key = (h, w, outputs.objectness.device)
        if key not in self.anchors:
            self.anchors[key] = torch.full((h * w, 4), 1.0, device=key[2])
        return self.anchors[key]

    def _reach(self, outputs: StageOutputs, image: int) -> Tensor:
        """(h * w, 4) distances in cells: the anchors' times what is predicted."""
        return self._anchors(outputs) * outputs.distances[image].float().flatten(1).T.clamp(-2, 2).exp()

    def _proposals(self, outputs: StageOutputs) -> list[tuple[Tensor, Tensor]]:
        """The best boxes of each image, inside its content, and the locations they come from; without gradient."""
        found = []
        points = locations(outputs.objectness)
        for i, size in enumerate(sizes_of(outputs.sizes)):
            boxes = clipped(around(points, self._reach(outputs, i)), size).detach()
            scores = outputs.objectness[i].float().flatten().detach()
            scores = scores.masked_fill((boxes[:, 2:] - boxes[:, :2]).amin(1) < 1, -torch.inf)
            best = scores.argsort(descending=True, stable=True)[: self.config.proposals]
            best = best[scores[best].isfinite()]
            found.append((boxes[best], best))
        return found

    def _objectness_loss(self, outputs: StageOutputs, image: int, boxes: Tensor) -> Tensor:
        points = locations(outputs.objectness)
        inside = (points[:, None] > boxes[:, :2]).all(-1) & (points[:, None] < boxes[:, 2:]).all(-1)
        logits = outputs.objectness[image].float().flatten()
        return F.binary_cross_entropy_with_logits(logits, inside.any(1).float())

    def _proposal_loss(self, outputs: StageOutputs, image: int, boxes: Tensor) -> Tensor:
        reach = self._reach(outputs, image)
        if not len(boxes):
            return reach.sum() * 0
        points = locations(outputs.objectness)
        sides = torch.cat([points[:, None] - boxes[:, :2], boxes[:, 2:] - points[:, None]], dim=2) / STRIDE
        least, owner = torch.where(sides.amin(-1) > 0, sides.sum(-1), torch.inf).min(dim=1)
        rows = least.isfinite().nonzero()[:, 0]
        return (reach[rows] - sides[rows, owner[rows]]).abs().sum() / max(1, len(rows))

    def _sample(self, proposals: Tensor, boxes: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Up to 8 proposals drawn at random, and the object of each, -1 for background."""
        # On the CPU, where the generator is.
        drawn = torch.randperm(len(proposals), generator=step.generator)[:8].to(proposals.device)
        chosen = torch.cat([proposals[drawn], boxes])  # the objects themselves are always looked at
        if not len(boxes):
            return chosen, torch.full((len(chosen),), -1, dtype=torch.int64, device=chosen.device)
        overlap, owner = iou(chosen, boxes).max(dim=1)
        return chosen, torch.where(overlap >= 0.5, owner, -1)

    def _classify(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C + 1) logits and (N, C, 4) boxes of windows (N, E, M, M)."""
        hidden = F.relu(self.shared(cells.flatten(1)))
        return self.cls(hidden).float(), self.box(hidden).float().view(len(cells), -1, 4)

    def decode(self, outputs: StageOutputs) -> list[Found]:
        found = []
        sizes = sizes_of(outputs.sizes)
        for i, ((boxes, source), size) in enumerate(zip(self._proposals(outputs), sizes, strict=True)):
            logits, deltas = self._classify(crop(outputs.features[i], boxes))
            scores, labels = logits.softmax(1)[:, :-1].max(dim=1)
            refined = clipped(moved(boxes, deltas[torch.arange(len(boxes)), labels]), size)
            scores = scores * ((refined[:, 2:] - refined[:, :2]).amin(1) >= 1)
            chosen = kept(refined, scores, labels, self.config, self.config.max_instances)
            best = chosen[: self.config.max_instances]
            soft = self.mask(crop(outputs.features[i], refined[best])).float().sigmoid()
            masks = Masks.from_windows(soft[torch.arange(len(best)), labels[best]], refined[best], size)
            more = len(chosen) > len(best)
            instances = Instances(scores[best], labels[best], masks, more, boxes=refined[best])
            found.append(Found(instances, source[best]))
        return found

    def class_layers(self) -> Mapping[str, ClassLayout]:
        layouts = {
            "cls": ClassLayout(background="last"),
            "box": ClassLayout(repeat=4),
            "mask": ClassLayout(),
        }
        return {f"{name}.{kind}": layout for name, layout in layouts.items() for kind in ("weight", "bias")}


def crop(features: Tensor, boxes: Tensor) -> Tensor:
    """(N, E, M, M) of features (E, h, w) inside boxes (N, 4) xyxy in pixels, bilinear."""
    h, w = features.shape[-2:]
    unit = (torch.arange(WINDOW, device=boxes.device) + 0.5) / WINDOW
    x, y = (boxes[:, a, None] + unit * (boxes[:, a + 2] - boxes[:, a])[:, None] for a in (0, 1))
    x, y = x / (w * STRIDE) * 2 - 1, y / (h * STRIDE) * 2 - 1
    grid = torch.stack([x[:, None].expand(-1, WINDOW, -1), y[:, :, None].expand(-1, -1, WINDOW)], dim=-1)
    return F.grid_sample(features.expand(len(boxes), -1, -1, -1), grid.to(features.dtype), align_corners=False)


def encode(boxes: Tensor, wanted: Tensor) -> Tensor:
    """What turns ``boxes`` into ``wanted``: shifts of the corners over the box's sides."""
    return (wanted - boxes) / (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).repeat(1, 2)


def moved(boxes: Tensor, deltas: Tensor) -> Tensor:
    """The inverse of :func:`encode`."""
    return boxes + deltas * (boxes[:, 2:] - boxes[:, :2]).clamp(min=1).repeat(1, 2)


# --- mattes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MatteOutputs:
    """(B, C, h, w) logits of each class' opacity at a quarter of the input, (B, 2) sizes."""

    mattes: Tensor
    sizes: Tensor


class ToyMatte(Net[MatteOutputs]):
    """One matte for each class of an image; its target is how opaque each pixel is, never rounded."""

    stride: ClassVar[int] = 8
    needs: ClassVar[frozenset[Need]] = frozenset({"mattes"})

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.matte = nn.Conv2d(width, config.num_classes, 1)

    def forward(self, batch: ImageBatch) -> MatteOutputs:
        return MatteOutputs(self.matte(self.body(batch.pixels)), batch.sizes)

    def _full(self, outputs: MatteOutputs, image: int, size: tuple[int, int]) -> Tensor:
        """(C, h, w) logits at input size."""
        logits = F.interpolate(outputs.mattes[image, None].float(), scale_factor=4, mode="bilinear")[0]
        return logits[:, : size[0], : size[1]]

    def loss(self, outputs: MatteOutputs, targets: Sequence[Target], step: Step) -> LossTerms:
        terms, opaque = [], outputs.mattes.new_zeros(())
        for i, target in enumerate(targets):
            assert target.shapes is not None and target.shapes.soft
            alphas = target.masks
            assert alphas.dtype == torch.float32
            logits = self._full(outputs, i, target.size)
            wanted = torch.zeros_like(logits)
            for alpha, label in zip(alphas, target.labels.tolist(), strict=True):
                wanted[label] = torch.maximum(wanted[label], alpha)
            terms.append(F.binary_cross_entropy_with_logits(logits, wanted))
            opaque = opaque + wanted.mean()
        return LossTerms({"loss_matte": torch.stack(terms).mean()}, {"opacity": opaque / len(targets)})

    def decode(self, outputs: MatteOutputs) -> list[Found]:
        found = []
        for i, size in enumerate(sizes_of(outputs.sizes)):
            alphas = self._full(outputs, i, size).sigmoid()
            scores, order = alphas.flatten(1).amax(1).sort(descending=True, stable=True)
            order = order[scores >= self.config.score]
            best = order[: self.config.max_instances]
            instances = Instances(scores[: len(best)], best, Masks.from_mattes(alphas[best]), len(order) > len(best))
            found.append(Found(instances, best))
        return found

    def class_layers(self) -> Mapping[str, ClassLayout]:
        return {"matte.weight": ClassLayout(), "matte.bias": ClassLayout()}


FIELDS: dict[str, Any] = {"input_short": 64, "input_long": 96}
TOYS: dict[str, ModelEntry] = {
    "toy_boxes": ModelEntry("Toy boxes", ToyConfig, ToyBoxes, FIELDS, None),
    "toy_two_stage": ModelEntry("Toy two-stage", ToyConfig, ToyTwoStage, FIELDS, None),
    "toy_matte": ModelEntry("Toy mattes", ToyConfig, ToyMatte, FIELDS, None),
}
