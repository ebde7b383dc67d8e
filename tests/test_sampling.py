"""What `GroupSampler` promises, per batch and per epoch."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
            hands = [batch[start : start + K] for start in range(0, P * K, K)]
            classes = []
            for hand in hands:
                (label,) = {int(labels[image]) for image in hand}
                classes.append(label)
                counts = Counter(hand)
                if sizes[label] >= K:
                    assert max(counts.values()) == 1
                else:
                    assert len(counts) == sizes[label]
                    assert max(counts.values()) - min(counts.values()) <= 1
            assert len(set(classes)) == P
        dealt = Counter(image for batch in batches for image in batch)
        assert {int(labels[image]) for image in dealt} == set(sizes)
        for image, label in enumerate(labels.tolist()):
            # A class with no more hands than there are batches shows every image.
            if -(-sizes[label] // K) <= length:
                assert dealt[image] >= 1


@given(samplers())
def test_the_same_seed_gives_the_same_epochs(given_sampler):
    sampler, labels, P, K = given_sampler
    twin = GroupSampler(labels, P, K, seed=sampler.seed)
    first, second = list(sampler), list(sampler)
    assert list(twin) == first
    twin.set_epoch(1)
    assert list(twin) == second
    twin.set_epoch(0)
    assert list(twin) == first


@given(samplers(), st.data())
def test_parts_of_several_processes_make_up_the_batches_of_one(given_sampler, data):
    sampler, labels, P, K = given_sampler
    count = data.draw(st.sampled_from([divisor for divisor in range(1, P * K + 1) if P * K % divisor == 0]))
    parts = [GroupSampler(labels, P, K, seed=sampler.seed, num_replicas=count, rank=rank) for rank in range(count)]
    assert {len(part) for part in parts} == {len(sampler)}
    for whole, *dealt in zip(sampler, *parts, strict=True):
        assert {len(part) for part in dealt} == {P * K // count}
        assert [image for part in dealt for image in part] == whole


def test_epochs_and_seeds_differ_and_mix_the_classes():
    labels = np.repeat(np.arange(30), 12)
    sampler = GroupSampler(labels, 5, 4)
    first, second = list(sampler), list(sampler)
    assert first != second
    assert list(GroupSampler(labels, 5, 4, seed=1)) != first
    together = Counter()
    for _ in range(40):
        for batch in sampler:
            classes = sorted({int(labels[image]) for image in batch})
            together.update((a, b) for a in classes for b in classes if a < b)
    # 30 * 29 / 2 pairs of classes; over 40 epochs of 18 batches each pair should meet, none far more often than others.
    assert len(together) == 435
    assert max(together.values()) < 5 * (40 * 18 * 10 / 435)


def test_an_epoch_is_no_longer_than_it_must_be():
    assert len(GroupSampler(np.repeat(np.arange(100), 60), 6, 10)) == 100
    dealt = Counter(image for batch in GroupSampler(np.repeat(np.arange(100), 60), 6, 10) for image in batch)
    assert set(dealt.values()) == {1}


def test_global_random_state_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    list(GroupSampler([0, 0, 1, 1], 2, 2))
    assert np.random.get_state()[1].tolist() == before


def test_it_drives_a_data_loader():
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    labels = torch.arange(6).repeat_interleave(5)
    loader = DataLoader(TensorDataset(torch.rand(30, 2), labels), batch_sampler=GroupSampler(labels, 3, 2))
    for _, batch in loader:
        assert len(batch) == 6
        assert len(batch.unique()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1, 2], 4, 2), "classes_per_batch=4: must be at most 3, the number of classes"),
        (([0, 1], 0, 2), "classes_per_batch=0"),
        (([0, 1], 2, 0), "samples_per_class=0"),
        (([], 1, 1), r"labels has shape \(0,\)"),
        (([0.5, 1.0], 1, 1), "must be a vector of whole numbers"),
        (([[0], [1]], 1, 1), r"labels has shape \(2, 1\)"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GroupSampler(*arguments)
    with pytest.raises(ValueError, match="num_replicas=4: must divide the 2 x 3 = 6 images"):
        GroupSampler([0, 1], 2, 3, num_replicas=4)
    with pytest.raises(ValueError, match="rank=2: must be below num_replicas=2"):
        GroupSampler([0, 1], 2, 3, num_replicas=2, rank=2)
    with pytest.raises(ValueError, match="seed=-1"):
        GroupSampler([0, 1], 1, 1, seed=-1)
    with pytest.raises(ValueError, match="epoch=-1"):
        GroupSampler([0, 1], 1, 1).set_epoch(-1)
