"""`model.predict`: whatever holds images in, predictions out."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instseg.infer.model import InstanceModel, require_weights
from instseg.infer.prediction import Prediction
from instseg.infer.sources import expand

if TYPE_CHECKING:
    from instseg.infer.sources import ImageLike


def predict(
    model: InstanceModel, source: ImageLike | Sequence[ImageLike], *, batch: int = 1
) -> Prediction | list[Prediction]:
    """The objects of one image, or of each of several.

    source: as :func:`instseg.infer.sources.expand` takes it. One image (also an address or `-`) gives one prediction; a
        list, a folder or a glob gives a list, also when it holds one image only.
    batch: images given to the network at once.

    The model predicts in evaluation mode and comes back in the modes that it was in.

    Raises DataError when an image is missing or cannot be read, CheckpointError when the model has no weights.
    """
    require_weights(model)
    images = expand(source, model.image_rule)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    predictions = []
    try:
        for i in range(0, len(images), batch):
            part = images[i : i + batch]
            found = model.predict_batch([image.load() for image in part])
            for image, instances in zip(part, found, strict=True):
                path = None if image.path is None else str(image.path)
                predictions.append(Prediction(instances, model.meta, path, model.image_rule))
    finally:
        for module, mode in modes.items():
            module.training = mode
    return predictions if _is_several(source) else predictions[0]


def _is_several(source: Any) -> bool:
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        return path.is_dir() or (not path.exists() and "://" not in str(source) and glob.has_magic(str(source)))
    return isinstance(source, Sequence) and not isinstance(source, bytes | bytearray | memoryview)
