import subprocess
import sys

import pytest
import torch
from torch import nn

from budgettune.spec.study_spec import load_spec
from budgettune.spec.tables import ModelSpec
from budgettune.training.resnet import Projection, ScalableResNet, count_multiply_adds, count_parameters


def paper_network(scale: float) -> ScalableResNet:
    spec = load_spec("paper").resolve({"scale": scale}).model
    return ScalableResNet.from_spec(spec, channels=3, num_classes=100)


@pytest.mark.parametrize(
    ("scale", "widths", "blocks", "millions"),
    [
        (1.0, [16, 32, 64], 3, 40.8),
        (1.1, [17, 35, 70], 3, 47.9),
        (1.2, [19, 38, 76], 3, 57.2),
        (1.3, [20, 41, 83], 3, 65.6),
        (1.4, [22, 44, 89], 4, 103.4),
    ],
)
def test_the_papers_five_scales_have_its_widths_blocks_and_multiply_adds(scale, widths, blocks, millions):
    model = paper_network(scale)
    assert model.architecture == {"widths": widths, "blocks": blocks, "stem": 16}
    assert round(count_multiply_adds(model, (3, 32, 32)) / 1e6, 1) == millions


UNEVEN = """
import torch
from budgettune.training.resnet import Projection
torch.set_num_threads(2)
layer = Projection(8, 16, 1, 2, bias=False).to(memory_format=torch.channels_last)
images = torch.randn(125, 8, 28, 28).contiguous(memory_format=torch.channels_last)
for _ in range(10):
    layer(images).sum().backward()
"""


def test_a_narrow_projection_survives_threads_that_share_out_images_unevenly():
    # In a process of its own, which would die: torch's own convolution corrupts its memory.
    subprocess.run([sys.executable, "-c", UNEVEN], check=True)


def test_a_narrow_network_compiles_as_a_whole():
    model = ScalableResNet(widths=(8, 16, 32), blocks=1, channels=1, num_classes=10)
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    assert compiled(torch.randn(9, 1, 8, 8)).shape == (9, 10)


@pytest.mark.parametrize("count", [8, 9])  # shared out by two threads evenly and unevenly
def test_a_narrow_projection_is_a_convolution_bit_for_bit(count):
    before = torch.get_num_threads()
    layer = Projection(8, 16, 1, 2, bias=False).to(memory_format=torch.channels_last)
    images = torch.randn(count, 8, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    chosen = torch.randn(count, 16, 4, 4)
    try:
        torch.set_num_threads(2)
        ours, plain = layer(images), nn.functional.conv2d(images, layer.weight, stride=2)
        gradients = [torch.autograd.grad(out, (images, layer.weight), chosen) for out in (ours, plain)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(ours, plain)
    assert all(map(torch.equal, *gradients))


@pytest.mark.parametrize(
    ("scale", "widths"),
    [(1.0, (16, 32, 64)), (1.1, (16, 32, 72)), (1.2, (24, 40, 80)), (1.3, (24, 40, 80)), (1.4, (24, 48, 88))],
)
def test_widths_round_to_a_multiple_and_never_lose_a_tenth(scale, widths):
    spec = ModelSpec(scale=scale)
    assert spec.realised_widths == widths
    assert all(width >= 0.9 * scale * base for width, base in zip(widths, spec.widths, strict=True))


def test_width_and_depth_scale_apart_and_over_the_tandem_scale():
    spec = ModelSpec(scale=2.0, width_scale=1.0, depth_scale=1.2)
    assert spec.realised_widths == (16, 32, 64)
    assert spec.realised_blocks == 4
    assert ModelSpec(depth_scale=1.2, depth_rounding="down").realised_blocks == 3
    assert ModelSpec(depth_scale=0.01).realised_blocks == 1


def test_the_network_maps_images_to_logits_and_every_parameter_learns():
    model = ScalableResNet(widths=[8, 16, 24], blocks=2, stem=8, channels=1, num_classes=7)
    logits = model(torch.randn(4, 1, 14, 14))
    assert logits.shape == (4, 7)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_shortcuts_are_projections_only_where_the_shape_changes():
    blocks = list(paper_network(1.0).stages)
    projected = [not isinstance(block.shortcut, nn.Identity) for block in blocks]
    assert projected == [False, False, False, True, False, False, True, False, False]
    assert isinstance(next(iter(paper_network(1.1).stages)).shortcut, nn.Sequential)  # 16 to 17 channels


def test_counts_agree_with_arithmetic_and_leave_the_model_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5 * 4 * 4, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert count_parameters(model) == 3 * 5 * 9 + 10 + 80 * 2 + 2
    assert count_multiply_adds(model, (3, 6, 6)) == 16 * 5 * 27 + 160
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
