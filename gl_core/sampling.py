"""Batches of P classes x K images, the groups in which labels propagate."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from gl_core import _checks

__all__ = ["GroupSampler"]


class GroupSampler:
    """A batch sampler whose batches hold P distinct classes with K images each.

    One epoch deals every image of every class once (as far as a batch holds K of a class): each class's images are shuffled
    and cut into hands of K, and every batch takes one hand of P different classes. In detail:

    - every batch holds exactly P x K indices, the K images of a class side by side;
    - no class is twice in a batch, and no image is twice in a batch, unless its class has fewer than K images, which then
      repeat as evenly as they can;
    - the last hand of a class is filled up with other images of that class, the last places of the batches with hands of
      further classes;
    - every class is reached in every epoch. Only where one class is so large that it would be in every batch, and still have
      hands left, are these left for other epochs;
    - `len()` is right before the first iteration and the same in every epoch;
    - the same seed and epoch give the same batches. Iterating moves on to the next epoch by itself; `set_epoch` chooses one.

    Use it as `DataLoader(dataset, batch_sampler=GroupSampler(dataset.labels, 12, 8))`.

    Several processes may share each batch: every one of `num_replicas` samplers, made alike but for their `rank`, deals its part
    of the same P x K images. The parts, one after the other in the order of ranks, are the batch that one process would have.

    Args:
        labels: class of each image (n,), whole numbers of any kind; position i is the index that batches refer to.
        classes_per_batch: P, from 1 to the number of classes. The Group Loss wants at least 2.
        samples_per_class: K, 1 or more. The Group Loss wants at least 2, and more than its anchors.
        seed: 0 or more.
        num_replicas: processes that share a batch, 1 or more; P x K must be a multiple of it.
        rank: which of them this one is, from 0.

    Raises ValueError if there are no labels, fewer classes than `classes_per_batch`, or an argument is out of its range.

    >>> sampler = GroupSampler([0, 0, 0, 1, 1, 1, 2, 2, 2], classes_per_batch=2, samples_per_class=3)
    >>> len(sampler), [len(batch) for batch in sampler]
    (2, [6, 6])
    """

    def __init__(
        self,
        labels: ArrayLike,
        classes_per_batch: int,
        samples_per_class: int,
        *,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        _checks.count("classes_per_batch", classes_per_batch, least=1)
        _checks.count("samples_per_class", samples_per_class, least=1)
        _checks.count("seed", seed, least=0)
        _checks.count("num_replicas", num_replicas, least=1)
        _checks.count("rank", rank, least=0)
        if rank >= num_replicas:
            raise ValueError(f"rank={rank}: must be below num_replicas={num_replicas}")
        images = classes_per_batch * samples_per_class
        if images % num_replicas:
            raise ValueError(
                f"num_replicas={num_replicas}: must divide the {classes_per_batch} x {samples_per_class} = {images} images of a batch"
            )
        self._part = slice(rank * images // num_replicas, (rank + 1) * images // num_replicas)
        labels = np.asarray(labels)
        if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"labels has shape {labels.shape} and dtype {labels.dtype}: must be a vector of whole numbers, one an image"
            )
        by_class = np.argsort(labels, kind="stable")
        starts = np.flatnonzero(np.diff(labels[by_class])) + 1
        self._images = np.split(by_class, starts)
        if classes_per_batch > len(self._images):
            raise ValueError(
                f"classes_per_batch={classes_per_batch}: must be at most {len(self._images)}, the number of classes"
            )
        self.classes_per_batch = classes_per_batch
        self.samples_per_class = samples_per_class
        self.seed = seed
        self.epoch = 0
        hands = np.array([-(-len(images) // samples_per_class) for images in self._images])
        self._num_batches = int(-(-hands.sum() // classes_per_batch))
        self._hands = np.minimum(hands, self._num_batches)

    def __len__(self) -> int:
        return self._num_batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, 0 or more, that the next iteration deals."""
        _checks.count("epoch", epoch, least=0)
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng((self.seed, self.epoch))
        self.epoch += 1
        seats = self._seat(random)
        piles = [self._deal(images, random) for images in self._images]
        for classes in seats:
            batch = []
            for label in classes:
                # A class that fills up a batch beyond its own hands is dealt anew.
                if not piles[label]:
                    piles[label] = self._deal(self._images[label], random)
                batch.extend(piles[label].pop())
            yield [int(image) for image in batch[self._part]]

    def _seat(self, random: np.random.Generator) -> list[list[int]]:
        """The classes of each batch, P distinct ones.

        Each class takes the emptiest batches, ties broken by lot. That keeps the numbers of classes in any two batches within
        one of each other, so that no batch overflows.
        """
        seats: list[list[int]] = [[] for _ in range(self._num_batches)]
        taken = np.zeros(self._num_batches)
        for label in random.permutation(len(self._images)):
            hands = self._hands[label]
            emptiest = np.argpartition(taken + random.random(self._num_batches), hands - 1)[:hands]
            taken[emptiest] += 1
            for batch in emptiest:
                seats[batch].append(int(label))
        for batch in seats:
            missing = self.classes_per_batch - len(batch)
            if missing:
                others = np.setdiff1d(np.arange(len(self._images)), batch)
                batch.extend(random.choice(others, missing, replace=False).tolist())
        return seats

    def _deal(self, images: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
        """A class's images, shuffled and cut into hands of exactly K."""
        K = self.samples_per_class
        shuffled = random.permutation(images)
        hands = [shuffled[start : start + K] for start in range(0, len(shuffled), K)]
        last = hands[-1]
        if len(last) < K:
            if len(images) >= K:
                others = np.setdiff1d(images, last)
                hands[-1] = np.concatenate([last, random.choice(others, K - len(last), replace=False)])
            else:
                hands[-1] = np.resize(shuffled, K)
        return hands
