"""What a model is before it predicts and after it was used: weights, modes, and tensors that it keeps."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import instseg
from instseg.apps.benchmark import benchmark
from instseg.apps.explain import explain_image
from instseg.core.categories import Categories
from instseg.core.errors import CheckpointError, DataError
from instseg.core.rle import encode
from instseg.data.dataset import InstanceDataset
from instseg.data.records import Annotation, Record
from instseg.evaluation.evaluate import evaluate
from instseg.model.instance_model import InstanceModel
from instseg.model.ready import evaluating
from instseg.model.with_config import reconfigure

NARROW: dict[str, Any] = {
    "backbone": "resnet10t", "fpn_channels": 16, "tower_convs": 1, "tower_channels": 16, "grids": (8, 4),
    "scale_ranges": ((1, 64), (32, 999)), "input_short": 64, "input_long": 96, "candidate_threshold": 0.005,
    "mask_threshold": 0.3, "min_score": 0.001, "max_instances": 40,
}  # fmt: skip
IMAGE = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))


def build(**fields: Any) -> InstanceModel:
    torch.manual_seed(0)
    return instseg.create_model("sodar_r50", 2, **{**NARROW, **fields}).train()


def target() -> dict[str, Tensor]:
    masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
    masks[0, 10:50, 20:60] = 1
    return {"labels": torch.tensor([1]), "masks": masks}


def losses_of(model: nn.Module) -> Tensor:
    return torch.stack(list(model([IMAGE], [target()]).values())).sum()


class Dataless(torch.optim.Optimizer):
    """Moves parameters through ``.data``, as older optimizers do: their version counters stand still."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = p.data - 0.01 * p.grad


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda ps: torch.optim.SGD(ps, 0.01),
    "adamw": lambda ps: torch.optim.AdamW(ps, 1e-4),
    "fused": lambda ps: torch.optim.AdamW(ps, 1e-4, fused=True),
    "through .data": Dataless,
}


def step(model: InstanceModel, optimizer: str = "sgd") -> None:
    chosen = OPTIMIZERS[optimizer](model.parameters())
    losses_of(model).backward()
    chosen.step()


def refused(model: InstanceModel) -> bool:
    with pytest.raises(CheckpointError, match="no weights"):
        model.predict(IMAGE)
    return not model.has_weights


# --- weights ----------------------------------------------------------------------------------------------------------


def test_looking_is_no_training() -> None:
    model = build()
    losses_of(model)
    assert refused(model)
    with torch.no_grad():
        losses_of(model)
    model.eval()([IMAGE])
    benchmark(model, repeat=1)
    assert refused(model)
    losses_of(model.train()).backward()
    assert refused(model)  # nothing has used the gradient


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_loop_of_ones_own_makes_a_model_that_predicts(optimizer: str, tmp_path: Path) -> None:
    model = build()
    step(model, optimizer)
    model.eval().predict(IMAGE)
    assert model.has_weights
    model.save(tmp_path / "mine.safetensors")
    instseg.load(tmp_path / "mine.safetensors").predict(IMAGE)


def test_training_a_single_layer_is_training() -> None:
    model = build()
    parameters = list(model.parameters())
    for parameter in parameters[:-1]:
        parameter.requires_grad_(False)
    step(model)
    assert parameters[-1].grad is not None and model.has_weights


def test_loading_a_whole_state_is_enough_and_a_part_is_not() -> None:
    trained, model, inner, assigned = (build() for _ in range(4))
    step(trained)
    state = trained.state_dict()
    part = {name: value for name, value in state.items() if ".backbone." in name}
    assert part and len(part) < len(state)
    model.load_state_dict(part, strict=False)
    assert refused(model)
    model.load_state_dict(state)
    inner.net.load_state_dict(trained.net.state_dict())
    assigned.load_state_dict(state, assign=True)
    assert model.has_weights and inner.has_weights and assigned.has_weights
    wrapped = AveragedModel(build())
    wrapped.load_state_dict(AveragedModel(trained).state_dict())
    assert wrapped.module.has_weights


def test_backbone_weights_alone_are_no_weights(tmp_path: Path) -> None:
    torch.save(build().net.backbone.state_dict(), tmp_path / "backbone.pth")  # type: ignore[union-attr]
    assert refused(build(backbone_weights=tmp_path / "backbone.pth"))


@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_a_copy_knows_what_its_original_knew_and_then_goes_its_own_way(copied: Any, looked: bool) -> None:
    model = build()
    if looked:
        losses_of(model)
    other = copied(model)
    assert refused(other)
    step(model)
    assert model.has_weights and not other.has_weights and copied(model).has_weights
    other.load_state_dict(model.state_dict())
    assert other.has_weights
    third = copied(build())
    step(third)
    assert third.has_weights


def test_models_that_share_parameters_share_what_these_have_learned() -> None:
    model = build()
    shared = reconfigure(model, {"max_instances": 7})
    step(shared)
    assert shared.has_weights and model.has_weights


def test_an_average_of_a_trained_model_predicts() -> None:
    model = build()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    step(model)
    average.update_parameters(model)
    step(model)
    average.update_parameters(model)
    average.module.eval().predict(IMAGE)


def test_a_model_that_a_wrapper_of_processes_trains_predicts() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = build()
        parallel = DistributedDataParallel(model, find_unused_parameters=model.net.may_leave_unused)
        losses_of(parallel)
        assert not model.has_weights
        optimizer = torch.optim.SGD(parallel.parameters(), 0.01)
        losses_of(parallel).backward()
        optimizer.step()
        model.eval().predict(IMAGE)
    finally:
        dist.destroy_process_group()


def test_moving_a_model_is_no_training() -> None:
    model = build()
    losses_of(model)
    model.to(memory_format=torch.channels_last)
    model.double().float()
    assert refused(model)
    copy.deepcopy(build().to("meta"))  # has no values at all


# --- modes ------------------------------------------------------------------------------------------------------------


def modes_of(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def mixed(model: InstanceModel) -> list[bool]:
    """Every third part in evaluation mode, as with frozen norms; returns the modes."""
    for i, module in enumerate(model.modules()):
        module.training = i % 3 != 1
    return modes_of(model)


def one_picture() -> InstanceDataset:
    mask = target()["masks"][0].numpy()
    annotation = Annotation(1, 1, encode(mask), (20.0, 10.0, 60.0, 50.0), float(mask.sum()))
    record = Record(1, None, 64, 96, (annotation,), "one.png")
    pixels = (IMAGE * 255).to(torch.uint8)
    return InstanceDataset([record], Categories.from_names(["class 0", "class 1"]), read=lambda _: pixels, name="one")


USES: dict[str, Callable[[InstanceModel], Any]] = {
    "predict": lambda model: model.predict(IMAGE),
    "predict a list": lambda model: model.predict([IMAGE, IMAGE], batch=2),
    "stream": lambda model: list(model.stream(iter([IMAGE, IMAGE]))),
    "evaluate": lambda model: evaluate(model, one_picture(), progress=False),
    "evaluate at several scales": lambda model: evaluate(model, one_picture(), progress=False, tta=True),
    "benchmark": lambda model: benchmark(model, repeat=1),
}


@pytest.mark.parametrize("use", USES)
def test_whatever_a_model_is_used_for_its_parts_keep_their_modes(use: str) -> None:
    model = build()
    model.has_weights = True
    before = mixed(model)
    assert len(set(before)) == 2
    USES[use](model)
    assert modes_of(model) == before


@pytest.mark.parametrize("use", USES)
def test_modes_come_back_when_something_goes_wrong(use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    model.has_weights = True
    before = mixed(model)

    def broken(*_: Any) -> Any:
        raise RuntimeError("of the network")

    monkeypatch.setattr(model.net, "decode", broken)
    with pytest.raises(RuntimeError, match="of the network"):
        USES[use](model)
    assert modes_of(model) == before


def test_modes_that_change_within_come_back_too() -> None:
    model = build()
    before = mixed(model)
    with pytest.raises(KeyError), evaluating(model):
        assert not any(modes_of(model))
        model.train()
        raise KeyError
    assert modes_of(model) == before


def test_a_model_that_is_built_again_keeps_the_modes_of_each_part() -> None:
    model = build()
    model.has_weights = True
    before = mixed(model)
    again = reconfigure(model, {"mask_weight": 2.0})
    assert again.net is not model.net and modes_of(again) == before


# --- what a network keeps ---------------------------------------------------------------------------------------------

VIEWS: dict[str, Callable[[InstanceModel], Any]] = {
    **USES,
    "call": lambda model: model.eval()([IMAGE]),
    "predict_batch": lambda model: model.eval().predict_batch([IMAGE]),
    "several scales": lambda model: model.eval().predict_batch([IMAGE], scales=(0.5, 1.0)),
    "tiles": lambda model: (
        reconfigure(model, {"input_scale": 1.0, "tile": 64, "tile_overlap": 16}).eval().predict_batch([IMAGE])
    ),
    "explain": lambda model: explain_image(model.eval(), IMAGE, best=1, score=0.0),
}


@pytest.mark.parametrize("inference", [False, True], ids=["", "in inference mode"])
@pytest.mark.parametrize("use", VIEWS)
def test_what_a_network_keeps_while_it_predicts_can_be_trained_with(
    use: str, inference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build()
    model.has_weights = True
    kept: list[Tensor] = []
    graphs: list[bool] = []

    def keep(*_: Any) -> None:
        kept.append(torch.ones(3))
        graphs.append(torch.is_grad_enabled())

    decode = model.net.decode
    monkeypatch.setattr(model.net, "decode", lambda outputs: keep() or decode(outputs))
    model.net.backbone.register_forward_hook(keep)  # type: ignore[union-attr]
    with torch.inference_mode(inference):
        VIEWS[use](model)
    assert kept and not any(graphs)
    weight = torch.ones(3, requires_grad=True)
    for tensor in kept:
        (weight * tensor).sum().backward()
    step(model.train())


def test_predicting_in_training_mode_is_refused_in_one_line() -> None:
    with pytest.raises(DataError, match=r"training mode: call model.eval\(\)"):
        build().predict_batch([IMAGE])


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, torch.float64])
def test_a_change_of_precision_is_no_training(cast: torch.dtype) -> None:
    model = build()
    model([IMAGE], [target()])
    assert not model.to(cast).has_weights
    trained = build()
    sum(trained([IMAGE], [target()]).values()).backward()
    torch.optim.SGD(trained.parameters(), lr=0.1).step()
    assert trained.to(cast).has_weights


def test_a_state_that_does_not_fit_leaves_a_model_without_weights() -> None:
    model = build()
    other = instseg.create_model("sodar_r50", 3, **NARROW)
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(other.state_dict())
    assert not model.has_weights
    model.load_state_dict(build().state_dict())
    assert model.has_weights


def test_a_model_within_another_module_has_weights_when_all_of_its_own_are_loaded() -> None:
    model = build()
    whole = nn.ModuleDict({"a": nn.Linear(2, 2), "detector": model})
    state = {f"detector.{key}": value for key, value in build().state_dict().items()}
    whole.load_state_dict(dict(list(state.items())[1:]), strict=False)
    assert not model.has_weights
    whole.load_state_dict(state, strict=False)
    assert model.has_weights
