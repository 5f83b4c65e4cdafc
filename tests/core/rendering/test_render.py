"""Rendering on a device other than the CPU takes another path: it computes the same."""

import numpy as np
import torch

from instseg.core.geometry import InputGeometry
from instseg.core.masks import Masks
from instseg.core.rendering import render


def test_tensors_are_sampled_as_arrays_are() -> None:
    soft = torch.rand(1, 150, 160, generator=torch.Generator().manual_seed(0))
    view = InputGeometry((590, 640), (700, 1100), (700, 1100))
    kept = Masks.from_maps(soft, view.content, 4).to_image(view)._kept
    extent = render.extents_of(kept, kept.windows)
    ((rows, columns),) = render._axes(kept, [0], extent)
    sides = int(extent[0, 1] - extent[0, 0]), int(extent[0, 3] - extent[0, 2])
    x0, y0, x1, y1 = kept.windows[0].tolist()
    cells = kept.values.view(y1 - y0, x1 - x0)
    on_device = list(render._blocks(cells, (rows, columns), *sides))
    on_cpu = list(render._blocks(cells.numpy(), (rows, columns), *sides))
    assert len(on_device) == len(on_cpu) == 6  # blocks
    for (y, x, tensor), (other_y, other_x, array) in zip(on_device, on_cpu, strict=True):
        assert (y, x) == (other_y, other_x) and isinstance(array, np.ndarray)
        torch.testing.assert_close(tensor, torch.from_numpy(array), atol=1e-6, rtol=0)
