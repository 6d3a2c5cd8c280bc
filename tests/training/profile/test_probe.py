"""Probes take the trainer's own steps; kernels are named by oneDNN and by the profiler."""

import itertools
import math
from contextlib import nullcontext
from copy import copy

import pytest
import torch

from budgettune.errors import SpecError
from budgettune.spec.study_spec import load_spec
from budgettune.spec.trust import Trust
from budgettune.training.data.load import load_data
from budgettune.training.device import Device
from budgettune.training.profile import probe as probe_module
from budgettune.training.profile.kernels import kernel_kind, kernels_of, parse_onednn, summarise
from budgettune.training.profile.probe import Probe, ProbeResult, fewest_steps, probe_images
from budgettune.training.resnet import ScalableResNet
from budgettune.training.trainer import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config():
    return load_spec("digits").with_overrides(["search={}", "train.batch_size=40", "train.epochs=1"])


@pytest.fixture(scope="module")
def probe(config):
    return Probe(config, probe_images(config.data, 40, CPU), Device("cpu"))


def test_a_probe_says_what_a_step_costs(config, probe):
    result = probe.measure(5)
    assert (result.batch_size, result.precision, result.steps) == (40, "fp32", 5)
    assert (result.widths, result.blocks) == (config.model.realised_widths, config.model.realised_blocks)
    assert result.ms_median > 0 and result.ms_mad >= 0
    assert result.flops_per_second == pytest.approx(6 * result.multiply_adds * 40 / (result.ms_median / 1e3))


def test_arithmetic_is_what_a_trial_reports(config, probe):
    trial = train(config, seed=0, data=load_data(config.data)).result
    assert probe.measure(1).multiply_adds == trial.multiply_adds


def test_a_probe_takes_the_steps_of_the_trainer(config, monkeypatch):
    taken = []
    step = probe_module.TrainingRun.step
    monkeypatch.setattr(
        probe_module.TrainingRun, "step", lambda run, *rest: (taken.append(len(rest[0])), step(run, *rest))
    )
    Probe(config, probe_images(config.data, 40, CPU), Device("cpu")).measure(3)
    assert taken == [40, 40, 40]


def test_the_median_the_mean_and_their_spreads_are_of_single_steps_on_a_cpu(config):
    ticks = itertools.accumulate(itertools.chain.from_iterable(zip([0, 100, 100], [1, 2, 9], strict=True)))
    probe = Probe(config, probe_images(config.data, 40, CPU), Device("cpu"))
    probe.clock = lambda: next(ticks)
    result = probe.measure(3)
    assert (result.ms_median, result.ms_mad) == (2000, 1000)
    assert (result.ms_mean, result.ms_error) == (4000, pytest.approx(1000 * math.sqrt(38 / 3 / 3)))


@pytest.mark.parametrize(("steps", "stretches"), [(1, [8]), (5, [8]), (24, [8] * 3), (50, [16] * 3)])
def test_a_device_that_works_by_itself_is_timed_in_stretches_of_eight_steps_at_least(probe, steps, stretches):
    waits, taken = [], []

    class Gpu(Device):
        is_cuda = measures_kernels = True

        def __init__(self):
            pass

        def set_arithmetic(self, precision, *, deterministic):
            pass

        def synchronize(self):
            waits.append(len(taken))

        def full_memory_named(self, batch_size):
            return nullcontext()

    on_gpu = copy(probe)
    on_gpu.device, on_gpu._step = Gpu(), lambda: taken.append(1)
    result = on_gpu.measure(steps)
    borders = list(itertools.accumulate(stretches, initial=0))
    assert waits == [place for pair in itertools.pairwise(borders) for place in pair]
    assert result.steps == sum(stretches)
    assert [fewest_steps(device, on_cpu=3) for device in (on_gpu.device, probe.device)] == [24, 3]


def test_probes_that_take_turns_are_each_timed_in_their_own_arithmetic(config, monkeypatch):
    said = []
    device = Device("cpu")
    images = probe_images(config.data, 40, CPU)
    probes = [Probe(config.resolve({"train.precision": precision}), images, device) for precision in ("fp32", "bf16")]
    monkeypatch.setattr(Device, "set_arithmetic", lambda device, precision, deterministic: said.append(precision))
    for probe in probes:
        probe.measure(1)
        probe.kernels()
    assert said == ["fp32", "fp32", "bf16", "bf16"]


def test_neither_random_numbers_nor_cudnn_settings_are_touched(config):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    before = torch.backends.cudnn.benchmark
    Probe(config, probe_images(config.data, 40, CPU), Device("cpu"), cudnn_benchmark=not before).measure(1)
    assert torch.backends.cudnn.benchmark == before
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("pruning", ["stale-quantile", "random"])
def test_pruning_and_a_budget_play_no_part(config, pruning):
    other = config.with_overrides([f"pruning.strategy={pruning}", "pruning.prune_rate=0.5", "train.budget=1s"])
    assert Probe(other, probe_images(other.data, 40, CPU), Device("cpu")).measure(1).batch_size == 40


@pytest.mark.parametrize(
    ("name", "shape", "num_classes"),
    [("digits", (1, 8, 8), 10), ("fashion-mnist", (1, 28, 28), 10), ("cifar100", (3, 32, 32), 100)],
)
def test_built_in_sets_need_no_files(name, shape, num_classes):
    spec = load_spec("digits").with_overrides([f"data.name={name}", "data.root=nowhere"]).data
    data = probe_images(spec, 6, CPU)
    assert tuple(data.train.images.shape) == (6, *shape)
    assert (data.channels, data.image_size, data.num_classes) == (shape[0], shape[1], num_classes)


def test_digits_are_imitated_in_their_real_shape(config):
    real, random = load_data(config.data), probe_images(config.data, 4, CPU)
    for name in ("channels", "image_size", "num_classes", "flip", "pad"):
        assert getattr(random, name) == getattr(real, name)


def test_a_resized_set_is_imitated_at_its_new_size(config):
    resized = config.with_overrides(["data.image_size=14"]).data
    assert probe_images(resized, 2, CPU).image_size == 14


def my_images(spec):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return images, torch.arange(20) % 4, images, torch.arange(20) % 4


def test_a_set_of_your_own_is_read(config):
    spec = config.with_overrides([f"data.name={__name__}:my_images", "train.batch_size=8"])
    data = probe_images(spec.data, 8, CPU, trust=Trust(["tests"]))
    assert data.num_classes == 4
    assert Probe(spec, data, Device("cpu")).measure(1).batch_size == 8


def test_a_batch_larger_than_the_set_is_refused(config):
    with pytest.raises(SpecError, match="40 is larger than the 8 training images"):
        Probe(config, probe_images(config.data, 8, CPU), Device("cpu"))


def my_model(num_classes, channels, image_size, scale):
    return ScalableResNet(widths=(8, 8, 8), blocks=1, stem=8, channels=channels, num_classes=num_classes)


def test_a_model_of_your_own_can_be_probed(config):
    spec = config.with_overrides([f"model.name={__name__}:my_model"])
    data = probe_images(spec.data, 40, CPU)
    assert Probe(spec, data, Device("cpu"), trust=Trust(["tests"])).measure(1).widths == (8, 8, 8)


def test_kernels_of_a_step_are_named_and_their_shares_add_up(probe, capfd):
    kernels = probe.kernels()
    assert [kernel.ms for kernel in kernels] == sorted((kernel.ms for kernel in kernels), reverse=True)
    assert sum(kernel.share for kernel in kernels) == pytest.approx(1.0)
    assert any("convolution" in kernel.name for kernel in kernels)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_onednn_names_the_implementation_of_each_direction(probe):
    names = " ".join(kernel.name for kernel in probe.kernels())
    for direction in ("forward_training", "backward_weights", "backward_data"):
        assert f"convolution {direction} " in names
    assert "aten::mkldnn_convolution" not in names  # or its time would count twice


def test_standard_output_comes_back_after_kernels_are_named(probe, capfd):
    kernels_of(lambda: None, Device("cpu"))
    print("still here", flush=True)
    assert capfd.readouterr().out == "still here\n"


def test_onednn_text_is_read_line_by_line():
    text = """onednn_verbose,v1,info,oneDNN v3.12.0
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx512_core,backward_weights,src:f32::blocked,,mb64_ic17oc17,4.25
onednn_verbose,v1,primitive,exec,cpu,reorder,simple:any,undef,src:f32 dst:f32,,,16x1x3x3,0.5
onednn_verbose,v1,primitive,exec,cpu,matmul,ref:any,undef,src:f32,,,8x8,cut short
something else"""
    assert parse_onednn(text) == [
        ("convolution backward_weights jit:avx512_core", 1, 4.25),
        ("reorder simple:any", 1, 0.5),
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("volta_gcgemm_32x32_tn", "fft"),
        ("void fft2d_r2c_32x32<float, false>(float2*, float const*)", "fft"),
        ("convolution forward_training ref:any", "reference"),
        ("reorder simple:any", "reference"),
        ("convolution backward_data gemm:jit", "fallback"),
        ("aten::_slow_conv2d_forward", "fallback"),
        ("reorder jit:uni", "reorder"),
        ("void cudnn::nchwToNhwcKernel<float>", "reorder"),
        ("convolution forward_training brg_conv_fwd:avx512_core", ""),
        ("convolution backward_weights jit:avx512_core", ""),
        ("matmul brg_matmul:avx512_core_bf16", ""),
        ("aten::native_batch_norm_backward", ""),
        ("ampere_sgemm_32x32_tn", ""),
    ],
)
def test_slow_kinds_are_known_by_name(name, kind):
    assert kernel_kind(name) == kind


def test_equal_names_are_added_up():
    kernels = summarise([("b", 1, 399.5), ("a", 2, 600.0), ("a", 1, 0.5)])
    assert [(kernel.name, kernel.launches) for kernel in kernels] == [("a", 3), ("b", 1)]
    assert kernels[0].share == pytest.approx(0.6005)


def test_a_result_knows_its_rate():
    result = ProbeResult(
        batch_size=10,
        precision="fp32",
        widths=(8, 8, 8),
        blocks=1,
        multiply_adds=1_000_000,
        steps=3,
        ms_median=2.0,
        ms_mad=0.0,
        ms_mean=2.1,
        ms_error=0.1,
    )
    assert result.flop_per_step == 6e7
    assert result.flops_per_second == pytest.approx(3e10)
