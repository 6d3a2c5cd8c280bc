import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from budgettune.spec.pruning import PruningSpec
from budgettune.training.own_loop import PruningDataset, ScalablePrunableResNet
from budgettune.training.pruning import make_strategy

SIZE = 24


@pytest.fixture
def underlying():
    images = torch.rand(SIZE, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(images, torch.arange(SIZE) % 3)


def thinned(underlying, **fields):
    spec = PruningSpec(**{"strategy": "stale-quantile", "prune_rate": 0.25, "refresh_every": 100, **fields})
    return PruningDataset(underlying, make_strategy(spec, SIZE), epochs=4)


def test_everything_is_there_at_first_under_its_own_index(underlying):
    dataset = thinned(underlying)
    assert len(dataset) == SIZE
    for position in (0, 5, SIZE - 1, -1):
        x, y, index = dataset[position]
        assert index == position % SIZE
        assert torch.equal(x, underlying[index][0])
        assert y == underlying[index][1]


def test_after_an_epoch_positions_are_internal_and_indices_external(underlying):
    dataset = thinned(underlying)
    dataset.observe(torch.arange(SIZE), torch.arange(SIZE, 0, -1.0))  # the last are the easiest
    dataset.next_epoch()
    assert len(dataset) == 18
    assert dataset.kept.tolist() == list(range(18))
    assert [index for _, _, index in dataset] == list(range(18))
    with pytest.raises(IndexError):
        dataset[18]
    dataset.observe(torch.arange(6), torch.full((6,), -1.0))
    dataset.next_epoch()
    assert dataset.kept.tolist() == list(range(6, 24))
    x, _, index = dataset[0]
    assert index == 6
    assert torch.equal(x, underlying[6][0])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this box has cores
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_whose_workers_outlive_the_epoch_sees_each_new_plan(underlying, workers):
    dataset = thinned(underlying)
    loader = DataLoader(dataset, batch_size=5, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    assert sorted(torch.cat([index for _, _, index in loader]).tolist()) == list(range(SIZE))
    dataset.observe(torch.arange(SIZE), torch.arange(float(SIZE)))
    dataset.next_epoch()
    assert sorted(torch.cat([index for _, _, index in loader]).tolist()) == list(range(6, SIZE))


def test_the_prunable_network_hands_losses_over_at_the_end_of_the_epoch(underlying):
    dataset = thinned(underlying)
    model = ScalablePrunableResNet(dataset=dataset, widths=[8, 8, 8], blocks=1, stem=8, channels=1, num_classes=3)
    seen = {}
    for x, y, index in DataLoader(dataset, batch_size=7, shuffle=True):
        loss = model.loss(x, y, index)
        loss.backward()
        seen |= dict(zip(index.tolist(), model._seen[-1][1].tolist(), strict=True))
        assert loss.item() == pytest.approx(model._seen[-1][1].mean().item())
    assert len(dataset) == SIZE  # nothing changes within an epoch
    model.end_epoch()
    easiest = sorted(seen, key=seen.__getitem__)[:6]
    assert set(dataset.kept.tolist()) == set(range(SIZE)) - set(easiest)
    assert not model._seen


def test_a_strategy_for_another_size_is_refused(underlying):
    with pytest.raises(ValueError, match="for 3 samples"):
        PruningDataset(underlying, make_strategy(PruningSpec(), 3))
