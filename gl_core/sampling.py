"""Batches of P classes x K images, the groups in which labels propagate."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import BatchSampler

from gl_core import _checks, distributed

__all__ = ["GroupSampler"]


class GroupSampler(BatchSampler):
    """A batch sampler whose batches hold P distinct classes with K images each.

    In an epoch the images of each class are shuffled and cut into sets of K, and every batch takes one set of P
    different classes:

    - a batch holds exactly P x K indices, the K images of a class side by side. No image is in it twice, unless its
      class has fewer than K images, which then repeat as evenly as they can;
    - an epoch shows every image once. The last set of a class is filled up with other images of that class, the last
      places of the batches with further classes. Only a class that is in every batch, and still has images left, leaves
      these for other epochs;
    - `len()` is the same in every epoch;
    - the same seed and epoch give the same batches. Iterating moves on to the next epoch; `set_epoch` chooses one.

    Use it as `DataLoader(dataset, batch_sampler=GroupSampler(dataset.labels, 12, 8))`, or as the `sampler` of a trainer
    of pytorch-metric-learning. Lightning sets the epoch; with several processes it must leave batches alone:
    `Trainer(use_distributed_sampler=False)`, `fabric.setup_dataloaders(loader, use_distributed_sampler=False)`.

    Several processes share each batch: `num_replicas` samplers, made alike but for their `rank`, yield parts that, in
    the order of ranks, are the batch of one process (`gl_core.distributed.whole_batch` joins their embeddings).

    Args:
        labels: class of each image (n,), integers, anything that `torch.as_tensor` takes.
        classes_per_batch: P, from 1 to the number of classes. The Group Loss wants at least 2.
        samples_per_class: K, 1 or more. The Group Loss wants at least 2, and more than its anchors.
        seed: 0 or more.
        balanced: show each class equally often (to one time in an epoch). An epoch is about as long as without; images
            of large classes are left for other epochs, those of small ones come again.
        num_replicas: processes that share a batch, 1 or more; a divisor of P x K. None: those of `torch.distributed`.
        rank: which of them this one is, from 0.

    Raises:
        ValueError: there are no labels, fewer classes than `classes_per_batch`, or an argument is out of its range.

    >>> sampler = GroupSampler([0, 0, 0, 1, 1, 1, 2, 2, 2], classes_per_batch=2, samples_per_class=3)
    >>> len(sampler), [len(batch) for batch in sampler]
    (2, [6, 6])
    """

    drop_last = False  # all batches are full

    def __init__(
        self,
        labels: ArrayLike | Tensor,
        classes_per_batch: int,
        samples_per_class: int,
        *,
        seed: int = 0,
        balanced: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        # The initialiser of BatchSampler wants a sampler of single images, which there is not.
        self.classes_per_batch = P = _checks.count("classes_per_batch", classes_per_batch, least=1)
        self.samples_per_class = K = _checks.count("samples_per_class", samples_per_class, least=1)
        self.seed = _checks.count("seed", seed, least=0)
        self.num_replicas = None if num_replicas is None else _checks.count("num_replicas", num_replicas, least=1)
        self.rank = None if rank is None else _checks.count("rank", rank, least=0)
        self._part()
        classes = _checks.labels("labels", labels).cpu().numpy()
        if not len(classes):
            raise ValueError("labels is empty: must hold the class of each image")
        by_class = np.argsort(classes, kind="stable")
        self._images = np.split(by_class, np.flatnonzero(np.diff(classes[by_class])) + 1)
        if P > len(self._images):
            raise ValueError(f"classes_per_batch={P}: must be at most {len(self._images)}, the number of classes")
        # How many sets of K images each class has in an epoch.
        sets = np.array([-(-len(images) // K) for images in self._images])
        self.balanced = balanced
        if balanced:
            sets[:] = -(-sets.sum() // len(sets))
        self._num_batches = int(-(-sets.sum() // P))
        self._sets = np.minimum(sets, self._num_batches)
        self.set_epoch(0)

    @property
    def batch_size(self) -> int:  # type: ignore[override]  # it depends on how many processes there are
        """Images in a batch of this process."""
        part = self._part()
        return part.stop - part.start

    @property
    def sampler(self) -> "GroupSampler":  # type: ignore[override]
        """Itself: where frameworks look for the `set_epoch` of a batch sampler."""
        return self

    def __len__(self) -> int:
        return self._num_batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, 0 or more, that the next iteration draws."""
        self.load_state_dict({"epoch": epoch, "batch": 0})

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many of its batches were drawn (with worker processes a DataLoader draws some ahead)."""
        epoch, batch = self._drawn
        return {"epoch": epoch, "batch": batch} if batch < len(self) else {"epoch": epoch + 1, "batch": 0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next iteration goes on where `state_dict` was called."""
        self.epoch = _checks.count("epoch", state["epoch"], least=0)
        self._skipped = _checks.count("batch", state["batch"], least=0)
        self._drawn = self.epoch, self._skipped

    def __iter__(self) -> Iterator[list[int]]:
        epoch, skipped = self.epoch, self._skipped
        self.epoch, self._skipped = epoch + 1, 0
        part = self._part()
        for number, batch in enumerate(self._batches(epoch), start=1):
            if number > skipped:
                self._drawn = epoch, number
                yield [int(image) for image in batch[part]]

    def _part(self) -> slice:
        """Where this process's images are in a batch."""
        count = distributed.num_processes() if self.num_replicas is None else self.num_replicas
        rank = self.rank if self.rank is not None else distributed.rank() if self.num_replicas is None else 0
        if rank >= count:
            raise ValueError(f"rank={rank}: must be below num_replicas={count}")
        images = self.classes_per_batch * self.samples_per_class
        if images % count:
            product = f"{self.classes_per_batch} x {self.samples_per_class} = {images}"
            raise ValueError(f"num_replicas={count}: must divide the {product} images of a batch")
        return slice(rank * images // count, (rank + 1) * images // count)

    def _batches(self, epoch: int) -> Iterator[list[int]]:
        """The batches of all processes together."""
        random = np.random.default_rng((self.seed, epoch))
        classes_of_batches = self._choose_classes(random)
        sets = [self._cut(images, random) for images in self._images]
        for classes in classes_of_batches:
            batch: list[int] = []
            for label in classes:
                # A class that is shown more often than it has sets is shuffled and cut anew.
                if not sets[label]:
                    sets[label] = self._cut(self._images[label], random)
                batch.extend(sets[label].pop())
            yield batch

    def _choose_classes(self, random: np.random.Generator) -> list[list[int]]:
        """The classes of each batch, P distinct ones.

        Each class goes into the batches that have the fewest classes yet, ties broken at random: the numbers of classes
        in two batches differ by one at most, and no batch gets more than P.
        """
        chosen: list[list[int]] = [[] for _ in range(self._num_batches)]
        taken, sets = np.zeros(self._num_batches), self._sets.copy()
        if self.balanced:
            # Places that are left go to one class each.
            left = self._num_batches * self.classes_per_batch - sets.sum()
            sets[random.choice(len(sets), left, replace=False)] += 1
        for label in random.permutation(len(self._images)):
            emptiest = np.argpartition(taken + random.random(self._num_batches), sets[label] - 1)[: sets[label]]
            taken[emptiest] += 1
            for batch in emptiest:
                chosen[batch].append(int(label))
        for batch in chosen:
            if missing := self.classes_per_batch - len(batch):
                others = np.setdiff1d(np.arange(len(self._images)), batch)
                batch.extend(random.choice(others, missing, replace=False).tolist())
        return chosen

    def _cut(self, images: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
        """The images of a class, shuffled and cut into sets of exactly K."""
        K = self.samples_per_class
        shuffled = random.permutation(images)
        if len(images) < K:
            return [np.resize(shuffled, K)]
        sets = [shuffled[start : start + K] for start in range(0, len(shuffled), K)]
        if missing := K - len(sets[-1]):
            others = np.setdiff1d(images, sets[-1])
            sets[-1] = np.concatenate([sets[-1], random.choice(others, missing, replace=False)])
        return sets
