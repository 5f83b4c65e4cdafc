"""Files of other code bases, rebuilt from the names and shapes of their tensors in ``layouts/``."""

import math
import re
from functools import cache
from pathlib import Path

import torch

# A model of the zoo: its backbone and its head as the code bases have them.
PARTS = {
    "solo_r50": ("r50", "solo"),
    "solo_r101": ("r101", "solo"),
    "decoupled_solo_r50": ("r50", "decoupled_solo"),
    "decoupled_solo_r101": ("r101", "decoupled_solo"),
    "decoupled_solo_light_r50": ("r50", "decoupled_solo_light"),
    "decoupled_solo_light_r50_dcn": ("r50_dcnv1", "decoupled_solo_light_dcn"),
    "solov2_r50": ("r50", "solov2"),
    "solov2_r101": ("r101", "solov2"),
    "solov2_r101_dcn": ("r101_dcnv2", "solov2_dcn"),
    "solov2_x101_dcn": ("x101_dcnv2", "solov2_dcn"),
    "solov2_light_448_r18": ("r18", "solov2_light"),
    "solov2_light_448_r34": ("r34", "solov2_light"),
    "solov2_light_448_r50": ("r50", "solov2_light"),
    "solov2_light_512_r50_dcn": ("r50_dcnv1", "solov2_light_dcn"),
    "sodar_r50": ("r50", "aggmask"),
    "sodar_r101": ("r101", "aggmask"),
    "sodar_r101_cls": ("r101", "aggmask"),
    "sodar_r101_mask": ("r101", "aggmask halved"),
    "sodar_solov2_r50": ("r50", "star"),
    "sodar_solov2_r101": ("r101", "star"),
    "sodar_solov2_r101_cls": ("r101", "star"),
    "sodar_solov2_r101_mask": ("r101", "star halved"),
}
# Published on ResNet-50: the released SODAR of other names has the same tensors.
FILES = {"mmdetection": "mmdetection", "SOLO": "solo", "AggMask": "aggmask", "AdelaiDet": "adelaidet"}


@cache
def layouts(code):
    """The lists of a code base, by section: names of tensors and their shapes."""
    sections, here = {}, {}
    for line in (Path(__file__).parent / "layouts" / f"{FILES[code]}.txt").read_text().splitlines():
        if line.startswith("["):
            here = sections.setdefault(line[1:-1], {})
        elif line and not line.startswith("#"):
            module, shape, *leaves = line.split()
            here |= {f"{module}.{leaf}": [int(n) for n in shape.split("x") if n != "-"] for leaf in leaves}
    return sections


def layout(name, code):
    """The names and shapes in the file that a code base published of a model."""
    backbone, head = PARTS[name]
    neck = "basic" if backbone in ("r18", "r34") else "bottleneck"
    body = "AdelaiDet" if code == "AdelaiDet" else "mmdetection"  # the others stand on mmdetection
    found = layouts(body)
    deep = found["backbone r50"] | deeper(found["backbone r50"]) if body == "AdelaiDet" and backbone == "r101" else None
    return {**(deep or found[f"backbone {backbone}"]), **found[f"neck {neck}"], **layouts(code)[f"head {head}"]}


def deeper(shapes):
    """The blocks that a ResNet-101 of detectron2 has beyond those of a ResNet-50: as the last of its fourth stage."""
    last = {name: shape for name, shape in shapes.items() if ".res4.5." in name}
    return {name.replace(".5.", f".{i}."): shape for i in range(6, 23) for name, shape in last.items()}


def foreign(name, code):
    """The state dict in that file: every tensor a single value that can be told apart."""
    return numbered(layout(name, code))


def numbered(shapes):
    counters = {key for key in shapes if key.endswith("num_batches_tracked")}
    return {
        key: torch.full((), float(i)).to(torch.int64 if key in counters else torch.float32).expand(shape)
        for i, (key, shape) in enumerate(shapes.items())
    }


def lively(state):
    """The same names with values that a network can compute with."""
    generator = torch.Generator().manual_seed(0)

    def values(name, tensor):
        if not tensor.is_floating_point():
            return torch.zeros_like(tensor)
        if tensor.dim() > 1:
            return torch.randn(tensor.shape, generator=generator) / math.sqrt(tensor[0].numel())
        if re.search(r"(solo_cate|conv_cls|cate_pred)\.bias$", name):
            return torch.full(tensor.shape, -4.5)  # few of the cells hold an object
        return torch.full(tensor.shape, 1.0 if name.endswith(("running_var", "weight")) else 0.0)

    return {name: values(name, tensor) for name, tensor in state.items()}


def write(path, state, key="state_dict"):
    torch.save({"meta": {"epoch": 36}, key: state}, path)
    return path


# What a name of theirs and the same tensor's name here have in common: a tensor of one kind is one of that kind there.
KINDS_OF_TENSORS = (
    (r"^backbone\.(?!fpn_)", r"^backbone\.body\."),
    (r"^neck\.|^backbone\.fpn_", r"^fpn\."),
    (r"lateral", r"^fpn\.lateral\."),
    (r"cate_|_cate|cls_|_cls", r"categor"),
    (r"kernel_convs\.|solo_kernel|conv_kernel|kernel_tower|kernel_pred", r"^head\.kernel"),
    (r"convcomb|learned_weights|context_fusion", r"^aggregation\."),
    (r"context_fusion", r"context"),
    (r"convcomb", r"^aggregation\.tower"),
    (r"convs_all_levels|conv_pred|feature_convs|solo_mask", r"^mask_feature\."),
    (r"conv_pred|solo_mask", r"^mask_feature\.output"),
    (r"(ins|mask)_convs", r"^mask_tower"),
    (r"ins_list|mask_list", r"^mask_output"),
    (r"(convs|list)_x", r"_x\."),
    (r"(convs|list)_y", r"_y\."),
    (r"conv2?_offset", r"conv_offset"),
    (r"downsample|shortcut", r"downsample"),
    (r"\.gn\.|_tower\.(1|4|7|10)\.|\.conv\d\.1\.|mask_head\.conv_pred\.1", r"\.gn\."),
)
# Where theirs are not counted as ours: stages from 2, a shortcut's two tensors by name, levels from 2, ReLUs with the
# rest of a tower, a convolution and its norm inside one block.
COUNTED_ALIKE = (
    (r"\.res(\d)", lambda m: f".{int(m[1]) - 1}"),
    (r"shortcut\.norm", "1"),
    (r"shortcut", "0"),
    (r"\.fpn_(?:lateral|output)(\d)", lambda m: f".{int(m[1]) - 2}"),
    (r"_tower\.(\d+)", lambda m: f".{int(m[1]) // 3}"),
    (r"(convs_all_levels\.\d\.conv\d)\.\d", r"\1"),
    (r"conv_pred\.\d", ""),
    (r"context_fusion_convs\.(\d)", lambda m: {"0": "", "1": "0", "3": "2"}[m[1]]),
    (r"conv2_offset", "conv2"),
)


def same_kind(theirs, ours):
    """Whether a tensor of theirs may be one of ours, by the words and numbers in its name."""
    words = all(bool(re.search(a, theirs)) == bool(re.search(b, ours)) for a, b in KINDS_OF_TENSORS)
    counted = theirs
    for pattern, alike in COUNTED_ALIKE:
        counted = re.sub(pattern, alike, counted)
    # Every block of our mask feature is followed by a doubling without tensors.
    halved = re.sub(r"(levels\.\d)\.(\d)", lambda m: f"{m[1]}.{int(m[2]) // 2}", ours)
    numbers = re.findall(r"\d+", counted) == re.findall(r"\d+", halved)
    return words and numbers and theirs.rsplit(".", 1)[1] == ours.rsplit(".", 1)[1]
