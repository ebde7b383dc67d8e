"""What `GroupSampler` promises, per batch and per epoch."""

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from lightning_fabric.utilities.data import _set_sampler_epoch
from pytorch_metric_learning import trainers
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from gl_core.loss import GroupLoss
from gl_core.sampling import GroupSampler


@st.composite
def samplers(draw):
    sizes = draw(st.lists(st.integers(1, 25), min_size=1, max_size=20))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = random.choice(1000, len(sizes), replace=False)
    labels = random.permutation(np.repeat(names, sizes))
    P, K = draw(st.integers(1, len(sizes))), draw(st.integers(1, 8))
    return GroupSampler(labels, P, K, seed=draw(st.integers(0, 2**32 - 1))), labels, P, K


@settings(max_examples=200)
@given(samplers())
def test_every_batch_and_every_epoch_keep_the_contract(given_sampler):
    sampler, labels, P, K = given_sampler
    sizes = Counter(labels.tolist())
    length = len(sampler)
    for _ in range(2):
        batches = list(sampler)
        assert len(batches) == length
        for batch in batches:
            assert len(batch) == P * K
            assert all(type(image) is int for image in batch)
            sets = [batch[start : start + K] for start in range(0, P * K, K)]
            classes = []
            for images in sets:
                (label,) = {int(labels[image]) for image in images}
                classes.append(label)
                counts = Counter(images)
                if sizes[label] >= K:
                    assert max(counts.values()) == 1
                else:
                    assert len(counts) == sizes[label]
                    assert max(counts.values()) - min(counts.values()) <= 1
            assert len(set(classes)) == P
        shown = Counter(image for batch in batches for image in batch)
        assert {int(labels[image]) for image in shown} == set(sizes)
        for image, label in enumerate(labels.tolist()):
            # A class with no more sets than there are batches shows every image.
            if -(-sizes[label] // K) <= length:
                assert shown[image] >= 1


@given(samplers(), st.data())
def test_parts_of_several_processes_make_up_the_batches_of_one(given_sampler, data):
    sampler, labels, P, K = given_sampler
    count = data.draw(st.sampled_from([divisor for divisor in range(1, P * K + 1) if P * K % divisor == 0]))
    parts = [GroupSampler(labels, P, K, seed=sampler.seed, num_replicas=count, rank=rank) for rank in range(count)]
    assert {len(part) for part in parts} == {len(sampler)}
    for whole, *shown in zip(sampler, *parts, strict=True):
        assert {len(part) for part in shown} == {P * K // count}
        assert [image for part in shown for image in part] == whole


def test_epochs_and_seeds_differ_and_mix_the_classes():
    labels = np.repeat(np.arange(30), 12)
    sampler = GroupSampler(labels, 5, 4)
    first, second = list(sampler), list(sampler)
    assert first != second != list(GroupSampler(labels, 5, 4, seed=1)) != first
    # An epoch is no longer than it must be: it shows every image once.
    assert len(first) == 18 and sorted(image for batch in first for image in batch) == list(range(360))
    together = Counter()
    for _ in range(40):
        for batch in sampler:
            together.update(combinations(sorted({int(labels[image]) for image in batch}), 2))
    # Over 40 epochs of 18 batches each pair of classes should meet, and none far more often than the others.
    assert len(together) == 30 * 29 / 2
    assert max(together.values()) < 5 * together.total() / len(together)


@given(samplers(), st.data())
def test_a_state_goes_on_where_it_was_taken(given_sampler, data):
    sampler, labels, P, K = given_sampler
    batches = [*sampler, *sampler]
    taken = data.draw(st.integers(0, len(batches)))
    sampler.set_epoch(0)
    first, states = [], [sampler.state_dict()]
    while len(first) < len(batches):
        for batch in sampler:
            first.append(batch)
            states.append(sampler.state_dict())
    assert first == batches
    resumed = GroupSampler(labels, P, K, seed=sampler.seed)
    resumed.load_state_dict(states[taken])
    rest = [*resumed, *resumed, *resumed]
    assert rest[: len(batches) - taken] == batches[taken:]


@given(samplers())
def test_balanced_classes_are_shown_equally_often(given_sampler):
    plain, labels, P, K = given_sampler
    sampler = GroupSampler(labels, P, K, seed=plain.seed, balanced=True)
    for _ in range(3):
        batches = list(sampler)
        assert len(batches) == len(sampler)
        counts = Counter(int(labels[image]) for batch in batches for image in batch)
        assert set(counts) == set(labels.tolist())
        assert max(counts.values()) - min(counts.values()) <= K
        for batch in batches:
            assert len(batch) == P * K and len({int(labels[image]) for image in batch}) == P
    # As long as an epoch without, to the rounding of sets to classes and of classes to batches.
    assert len(plain) <= len(sampler) <= len(plain) + -(-len(set(labels.tolist())) // P)


def test_labels_and_whole_numbers_of_any_kind():
    labels = np.repeat(np.arange(6), 5)
    expected = list(GroupSampler(labels, 3, 2, seed=4))
    for kind in (labels.astype(np.uint16), labels.tolist(), torch.tensor(labels), list(torch.tensor(labels))):
        np.random.seed(0)  # which the batches do not depend on
        assert list(GroupSampler(kind, np.int64(3), np.uint8(2), seed=np.int32(4))) == expected


def data_set(labels):
    return TensorDataset(torch.randn(len(labels), 8, generator=torch.Generator().manual_seed(0)), torch.tensor(labels))


@pytest.mark.parametrize("workers", [0, 1])
def test_it_drives_a_data_loader(workers):
    labels = np.arange(6).repeat(5)
    sampler = GroupSampler(labels, 3, 2)
    assert isinstance(sampler, BatchSampler) and sampler.batch_size == 6 and sampler.drop_last is False
    loader = DataLoader(data_set(labels), batch_sampler=sampler, num_workers=workers)
    found = [batch.tolist() for _, batch in loader]
    assert found == [labels[batch].tolist() for batch in GroupSampler(labels, 3, 2)]


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_it_drives_the_trainers_of_pytorch_metric_learning():
    labels = np.arange(12).repeat(20)
    network, loss = torch.nn.Linear(8, 16), GroupLoss(12, 16)
    before, sampler = network.weight.clone(), GroupSampler(labels, 6, 4)
    optimizers = {
        f"{name}_optimizer": torch.optim.SGD(trained.parameters(), 0.1)
        for name, trained in (("trunk", network), ("metric_loss", loss))
    }
    training = {"trunk": network}, optimizers, 24, {"metric_loss": loss}, data_set(labels)
    trainer = trainers.MetricLossOnly(*training, sampler=sampler, dataloader_num_workers=0)
    trainer.train(num_epochs=2)
    assert trainer.iterations_per_epoch == len(sampler) == 10 and sampler.epoch == 2
    assert not network.weight.equal(before)


def test_lightning_sets_its_epochs():
    labels = np.arange(6).repeat(5)
    loader = DataLoader(data_set(labels), batch_sampler=GroupSampler(labels, 3, 2))
    loader = Fabric(accelerator="cpu", devices=1).setup_dataloaders(loader)
    epochs = [[batch.tolist() for _, batch in loader] for _ in range(2)]
    expected = GroupSampler(labels, 3, 2)
    assert epochs == [[labels[batch].tolist() for batch in expected] for _ in range(2)]
    # As its trainer does when it resumes.
    _set_sampler_epoch(loader, 7)
    expected.set_epoch(7)
    assert loader.batch_sampler.epoch == 7 and list(loader.batch_sampler) == list(expected)


def write_batches(fabric, folder):
    labels = np.arange(6).repeat(5)
    loader = DataLoader(data_set(labels), batch_sampler=GroupSampler(labels, 4, 3))
    loader = fabric.setup_dataloaders(loader, use_distributed_sampler=False)
    batches = [[batch.tolist() for _, batch in loader] for _ in range(2)]
    (folder / f"{fabric.global_rank}.json").write_text(json.dumps(batches))


@pytest.mark.slow
@pytest.mark.thorough
def test_processes_of_lightning_share_each_batch(tmp_path):
    Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(write_batches, tmp_path)
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    labels, sampler = np.arange(6).repeat(5), GroupSampler(np.arange(6).repeat(5), 4, 3)
    for first, second in zip(*parts, strict=True):
        assert [[*a, *b] for a, b in zip(first, second, strict=True)] == [labels[batch].tolist() for batch in sampler]


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        (([0, 1, 2], 4, 2), {}, "classes_per_batch=4: must be at most 3, the number of classes"),
        (([0, 1], 0, 2), {}, "classes_per_batch=0"),
        (([0, 1], 2, 0), {}, "samples_per_class=0"),
        ((np.zeros(0, int), 1, 1), {}, "labels is empty"),
        (([0.5, 1.0], 1, 1), {}, "must be a vector of integers"),
        ((["a", "b"], 1, 1), {}, "labels: must be a vector of integers, not \\['a', 'b'\\]"),
        (([[0], [1]], 1, 1), {}, r"labels has shape \(2, 1\)"),
        (([0, 1], 2, 3), {"num_replicas": 4}, "num_replicas=4: must divide the 2 x 3 = 6 images"),
        (([0, 1], 2, 3), {"num_replicas": 2, "rank": 2}, "rank=2: must be below num_replicas=2"),
        (([0, 1], 1, 1), {"seed": -1}, "seed=-1"),
    ],
)
def test_bad_input_is_named(arguments, keywords, message):
    with pytest.raises(ValueError, match=message):
        GroupSampler(*arguments, **keywords)
    with pytest.raises(ValueError, match="epoch=-1"):
        GroupSampler([0, 1], 1, 1).set_epoch(-1)
