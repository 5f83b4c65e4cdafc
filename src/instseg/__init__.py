"""instseg: one-stage and box-free instance segmentation on today's PyTorch.

>>> import instseg
>>> model = instseg.load("best.safetensors")  # doctest: +SKIP
>>> result = model.predict("street.jpg")  # doctest: +SKIP
>>> result.save("street.png")  # doctest: +SKIP
"""

from instseg._version import __version__

_LAZY = {
    "list_models": "instseg.models.zoo",
    "create_model": "instseg.api",
    "train": "instseg.api",
    "evaluate": "instseg.api",
    "load": "instseg.model.load",
    "Instances": "instseg.core.instances",
    "Masks": "instseg.core.masks",
    "Prediction": "instseg.results.prediction",
    "Categories": "instseg.core.categories",
    "InstsegError": "instseg.core.errors",
    "DataError": "instseg.core.errors",
    "ImageError": "instseg.model.predicting",
    "matrix_nms": "instseg.ops.mask_nms",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'instseg' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
