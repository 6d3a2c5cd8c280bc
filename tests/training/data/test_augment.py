import pytest
import torch
from torch.nn import functional

from budgettune.training.data.load import augment, normalise


def numbered(batch=64, channels=3, height=8, width=8):
    """Images without a zero and without symmetry, so that every crop and flip is recognised."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (batch, channels, height, width), dtype=torch.uint8, generator=generator)


def seeded(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def crops(image, pad):
    padded = functional.pad(image, (pad,) * 4)
    height, width = image.shape[-2:]
    span = range(2 * pad + 1)
    return [padded[:, top : top + height, left : left + width] for top in span for left in span]


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 8, 8), (3, 8, 8), (3, 6, 9)])
def test_every_image_is_a_crop_of_its_padded_self_perhaps_mirrored(channels, height, width):
    images = numbered(channels=channels, height=height, width=width)
    result = augment(images, pad=2, flip=True, generator=seeded())
    assert result.shape == images.shape
    assert result.dtype == torch.uint8
    for before, after in zip(images, result, strict=True):
        candidates = [candidate for crop in crops(before, 2) for candidate in (crop, crop.flip(-1))]
        assert any(torch.equal(after, candidate) for candidate in candidates)


def test_all_crops_and_both_sides_are_about_equally_frequent():
    images = numbered(batch=1).expand(9000, -1, -1, -1)
    result = augment(images, pad=1, flip=True, generator=seeded())
    expected = [candidate for crop in crops(images[0], 1) for candidate in (crop, crop.flip(-1))]
    counts = [int((result == candidate).flatten(1).all(1).sum()) for candidate in expected]
    assert sum(counts) == 9000
    assert min(counts) > 400
    assert max(counts) < 600


def test_crop_and_flip_are_drawn_for_each_image_alone():
    images = numbered(batch=1).expand(200, -1, -1, -1)
    result = augment(images, pad=2, flip=True, generator=seeded())
    assert len(result.unique(dim=0)) > 40


def test_same_seed_same_batch_and_other_seed_other_batch():
    images = numbered()
    first, again, other = (augment(images, pad=2, flip=True, generator=seeded(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_memory_order_of_the_input_does_not_change_the_result():
    images = numbered()
    turned = images.contiguous(memory_format=torch.channels_last)
    first, second = (augment(batch, pad=2, flip=True, generator=seeded()) for batch in (images, turned))
    assert torch.equal(first, second)


def test_no_pad_and_no_flip_changes_nothing():
    images = numbered()
    assert torch.equal(augment(images, pad=0, flip=False, generator=seeded()), images)


def test_no_flip_keeps_the_sides():
    images = numbered()
    for before, after in zip(images, augment(images, pad=1, flip=False, generator=seeded()), strict=True):
        assert any(torch.equal(after, crop) for crop in crops(before, 1))


def test_input_and_global_random_state_stay_as_they_are():
    images = numbered()
    copy, state = images.clone(), torch.get_rng_state()
    augment(images, pad=2, flip=True, generator=seeded())
    assert torch.equal(images, copy)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_is_the_formula_in_channels_last(channels):
    images = numbered(channels=channels)
    mean, std = (0.5, 0.4, 0.3)[:channels], (0.2, 0.3, 0.25)[:channels]
    result = normalise(images, mean, std, torch.float32)
    scaled = images.double() / 255
    expected = (scaled - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_normalise_to_bfloat16_rounds_once():
    images = numbered()
    statistics = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    exact = normalise(images, *statistics, torch.float32)
    assert torch.equal(normalise(images, *statistics, torch.bfloat16), exact.bfloat16())


def test_normalise_first_used_in_inference_still_serves_training():
    images, weight = numbered(), torch.ones(3, 1, 1, requires_grad=True)
    statistics = ((0.11, 0.12, 0.13), (0.21, 0.22, 0.23))
    with torch.inference_mode():
        normalise(images, *statistics, torch.float32)
    (normalise(images, *statistics, torch.float32) * weight).sum().backward()
    assert torch.isfinite(weight.grad).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_cpu_generator_gives_the_same_batch_on_the_gpu():
    images = numbered()
    here = augment(images, pad=2, flip=True, generator=seeded())
    there = augment(images.cuda(), pad=2, flip=True, generator=seeded())
    assert there.is_cuda
    assert torch.equal(here, there.cpu())
    assert augment(images.cuda(), pad=2, flip=True, generator=seeded(device="cuda")).is_cuda
