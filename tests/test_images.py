"""The image store and the augmentation of batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from gl_core.images import ImageStore, augment
from gl_core.inference import embed
from gl_core.models import build


class Pictures:
    """The least that a store asks of a data set."""

    def __init__(self, images):
        self.images = images
        self.labels = np.arange(len(images))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


@pytest.fixture
def pictures():
    random = np.random.default_rng(0)
    sizes = [(40, 40), (60, 40), (31, 90), (200, 64), (40, 41)] * 30
    return Pictures([Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes])


def test_held_and_decoded_by_batches_are_the_same(pictures):
    held, decoded = ImageStore(pictures, 32), ImageStore(pictures, 32, memory=0)
    batches = [[3, 1, 4, 1], [5], list(range(150))]
    for (a, a_labels), (b, b_labels), batch in zip(
        held.batches(batches), decoded.batches(batches), batches, strict=True
    ):
        assert a.dtype == torch.uint8 and a.shape == (len(batch), 3, 32, 32)
        assert a.equal(b)
        assert a_labels.tolist() == b_labels.tolist() == batch


def test_the_centre_of_the_shorter_side_is_kept():
    # A red left half, a blue right half; the centre square of a 40 x 20 image is columns 10 to 29.
    array = np.zeros((20, 40, 3), np.uint8)
    array[:, :20, 0] = 255
    array[:, 20:, 2] = 255
    array[:, :10] = array[:, 30:] = 77
    store = ImageStore(Pictures([Image.fromarray(array)]), 20)
    ((image, _),) = store.batches([[0]])
    np.testing.assert_array_equal(image[0].permute(1, 2, 0).numpy(), array[:, 10:30])
    smaller = ImageStore(Pictures([Image.fromarray(array)]), 10, resize=20)
    ((image, _),) = smaller.batches([[0]])
    np.testing.assert_array_equal(image[0].permute(1, 2, 0).numpy(), array[5:15, 15:25])


def test_resize_below_size_is_refused(pictures):
    with pytest.raises(ValueError, match="resize=20: must be at least size=32"):
        ImageStore(pictures, 32, resize=20)


@pytest.mark.parametrize("kind", ["photo", "drawing"])
def test_augmentation_is_seeded_varied_and_in_range(kind):
    images = torch.randint(0, 256, (16, 3, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:] = images[0]
    first = augment(images, kind, 32, generator=torch.Generator().manual_seed(1))
    assert first.shape == (16, 3, 32, 32) and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1
    assert first.equal(augment(images, kind, 32, generator=torch.Generator().manual_seed(1)))
    assert not first.equal(augment(images, kind, 32, generator=torch.Generator().manual_seed(2)))
    assert len({tuple(image.flatten()[:50].tolist()) for image in first}) == 16


def test_photographs_are_mirrored_and_drawings_never():
    # Left dark, right bright: every variation that is not mirrored keeps that order.
    ramp = torch.linspace(0, 255, 64).to(torch.uint8).expand(64, 3, 64, 64)
    rises = {}
    for kind in ("photo", "drawing"):
        varied = augment(ramp, kind, 56, generator=torch.Generator().manual_seed(0))
        rises[kind] = (varied[:, 0, 28, -1] > varied[:, 0, 28, 0]).float().mean().item()
    assert 0.25 < rises["photo"] < 0.75
    assert rises["drawing"] == 1


def test_a_photo_shows_a_part_of_itself_undistorted():
    # Pixel values encode their own coordinates, so each variation tells which part it shows.
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    image = torch.stack([x * 3, y * 3, 0 * x]).to(torch.uint8).expand(200, 3, 64, 64)
    varied = augment(image, "photo", 32, generator=torch.Generator().manual_seed(0)) * 255 / 3
    width = (varied[:, 0, 16, -1] - varied[:, 0, 16, 0]).abs() * 32 / 31
    height = (varied[:, 1, -1, 16] - varied[:, 1, 0, 16]) * 32 / 31
    area = width * height / 64**2
    assert area.min() > 0.4 and area.max() <= 1.05
    assert ((width / height) > 0.7).all() and ((width / height) < 1.43).all()


def test_no_augmentation_only_resizes():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert augment(images, "none", 32).equal(images / 255)
    assert augment(images, "none", 16).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="augmentation='blur': must be one of none, photo, drawing"):
        augment(images, "blur", 32)


def test_embed_is_in_order_and_leaves_the_mode(pictures):
    torch.manual_seed(0)
    model = build("conv4").train()
    store = ImageStore(pictures, 32)
    embedded = embed(model, store, batch_size=7)
    assert model.training
    assert embedded.shape == (150, model.embedding_size) and embedded.dtype == torch.float32
    ((images, _),) = store.batches([list(range(150))])
    torch.testing.assert_close(embedded, embed(model, images, batch_size=150), rtol=1e-4, atol=1e-5)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(embedded[149:], model(images[149:]), rtol=1e-4, atol=1e-5)
