import pytest
import torch
import torch.nn.functional as F

from instseg.ops import aggregate as module
from instseg.ops.aggregate import aggregate, layer_shapes, parameter_count, split_parameters


def networks(count, inputs, layers=3, kernel_size=3, seed=0):
    shapes = layer_shapes(inputs, layers)
    size = parameter_count(shapes, kernel_size)
    flat = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    return split_parameters(flat, shapes, kernel_size)


def one_by_one(x, layers):
    """The definition: each instance passes its own layers, a ReLU between them."""
    results = []
    for i, instance in enumerate(x):
        for j, (w, b) in enumerate(layers):
            instance = F.conv2d(instance.relu() if j else instance, w[i], b[i], padding=w.shape[-1] // 2)
        results.append(instance[0])
    return torch.stack(results)


@pytest.mark.parametrize(
    ("inputs", "layers", "kernel_size", "parameters"),
    [
        *[(21, 3, 3, 945), (20, 3, 3, 909), (25, 3, 3, 1089), (17, 3, 3, 801), (16, 3, 3, 765), (19, 3, 3, 873)],
        *[(21, 1, 3, 190), (20, 3, 1, 109), (25, 3, 1, 129), (5, 1, 3, 46), (13, 2, 3, 509)],
    ],
)
def test_the_number_of_predicted_parameters(inputs, layers, kernel_size, parameters):
    assert parameter_count(layer_shapes(inputs, layers), kernel_size) == parameters


def test_a_vector_holds_each_layers_weights_and_then_its_biases():
    layers = split_parameters(torch.arange(945.0)[None], layer_shapes(21), 3)
    assert [tuple(w.shape) for w, _ in layers] == [(1, 4, 21, 3, 3), (1, 4, 4, 3, 3), (1, 1, 4, 3, 3)]
    assert layers[0][0][0, 0, 1, 0, 0] == 9 and layers[0][0][0, 1, 0, 0, 0] == 21 * 9
    assert layers[0][1][0].tolist() == [756.0, 757.0, 758.0, 759.0]
    assert layers[1][0].flatten()[0] == 760 and layers[2][1].tolist() == [[944.0]]


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_one_grouped_convolution_is_a_loop_over_the_instances(layers, kernel_size):
    maps, index, context = torch.randn(9, 6, 8), torch.randint(0, 9, (7, 5)), torch.randn(4, 6, 8)
    nets = networks(7, 9, layers, kernel_size)
    x = torch.cat([maps[index], context.expand(7, -1, -1, -1)], dim=1)
    torch.testing.assert_close(aggregate(maps, index, nets, context), one_by_one(x, nets), atol=1e-3, rtol=1e-4)
    own = torch.randn(7, 4, 6, 8)  # each instance its own context
    x = torch.cat([maps[index], own], dim=1)
    torch.testing.assert_close(aggregate(maps, index, nets, own), one_by_one(x, nets), atol=1e-3, rtol=1e-4)


def test_maps_alone_and_context_alone():
    maps, index, context = torch.randn(9, 6, 8), torch.randint(0, 9, (7, 5)), torch.randn(4, 6, 8)
    nets = networks(7, 5)
    torch.testing.assert_close(aggregate(maps, index, nets), one_by_one(maps[index], nets), atol=1e-3, rtol=1e-4)
    nets = networks(7, 4)
    x = context.expand(7, -1, -1, -1)
    torch.testing.assert_close(aggregate(None, None, nets, context), one_by_one(x, nets), atol=1e-3, rtol=1e-4)


def test_shared_weights_are_those_of_every_instance():
    maps, index, context = torch.randn(9, 6, 8), torch.randint(0, 9, (7, 5)), torch.randn(4, 6, 8)
    shared = [(w[0], b[0]) for w, b in networks(1, 9)]
    repeated = [(w.expand(7, *w.shape), b.expand(7, *b.shape)) for w, b in shared]
    ours = aggregate(maps, index, shared, context)
    torch.testing.assert_close(ours, aggregate(maps, index, repeated, context), atol=1e-3, rtol=1e-4)


def test_a_center_tap_on_one_map_gives_that_map():
    maps, index = torch.rand(9, 6, 8), torch.randint(0, 9, (7, 5))
    weight = torch.zeros(7, 1, 5, 3, 3)
    weight[:, 0, 2, 1, 1] = 1
    torch.testing.assert_close(aggregate(maps, index, [(weight, torch.zeros(7, 1))]), maps[index[:, 2]])


def test_shares_mix_maps_before_they_are_aggregated():
    maps, index, nets = torch.randn(9, 6, 8), torch.randint(0, 9, (7, 5, 4)), networks(7, 5)
    shares = torch.rand(7, 5, 4)
    mixed = (maps[index] * shares[..., None, None]).sum(dim=2)
    ours = aggregate(maps, index, nets, shares=shares)
    torch.testing.assert_close(ours, one_by_one(mixed, nets), atol=1e-3, rtol=1e-4)


def test_chunks_change_neither_the_result_nor_the_gradients(monkeypatch):
    maps, index, context = torch.randn(9, 6, 8), torch.randint(0, 9, (7, 5)), torch.randn(4, 6, 8)
    found = []
    for cpu, bound in ((10**6, 10**6), (500, 10**6), (500, 100)):  # at once, in chunks, in chunks computed again
        monkeypatch.setattr(module, "CPU_VALUES", cpu)
        monkeypatch.setattr(module, "VALUES", bound)
        inputs = [t.clone().requires_grad_() for t in (maps, context)]
        logits = aggregate(inputs[0], index, networks(7, 9), inputs[1])
        logits.sigmoid().sum().backward()
        found.append([logits.detach(), *(t.grad for t in inputs)])
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
