import pytest
import torch
from torch import nn

from budgettune.spec.study_spec import load_spec
from budgettune.spec.tables import ModelSpec
from budgettune.training.resnet import ScalableResNet, count_multiply_adds, count_parameters


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
