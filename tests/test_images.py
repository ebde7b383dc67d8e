"""The image store and the augmentation of batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from gl_core.datasets.augmentation import augment
from gl_core.datasets.store import ImageStore
from gl_core.inference import embed
from gl_core.models import build


class Pictures:
    """The least that a store asks of a data set."""

    packed = {}

    def __init__(self, images):
        self.images = images
        self.labels = np.arange(len(images))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if self.images[index] is None:
            raise ValueError(f"image {index} cannot be read")
        return self.images[index], int(self.labels[index])


@pytest.fixture
def pictures():
    random = np.random.default_rng(0)
    sizes = [(40, 40), (60, 40), (31, 90), (200, 64), (40, 41)] * 30
    return Pictures([Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes])


def pixels(array, size, **settings):
    """What a store makes of one image, as (height, width, channels)."""
    ((image, _),) = ImageStore(Pictures([Image.fromarray(array)]), size, **settings).batches([[0]])
    return image[0].permute(1, 2, 0).numpy()


@pytest.mark.slow
def test_held_and_decoded_by_batches_are_the_same(pictures):
    # Held; decoded by threads; decoded by another process, which stays for a second pass.
    held, threads = ImageStore(pictures, 32), ImageStore(pictures, 32, memory=0, workers=0)
    process = ImageStore(pictures, 32, memory=0, workers=1)
    batches = [[3, 1, 4, 1], [5], list(range(150))]
    for store in (threads, process, process):
        for (a, a_labels), (b, b_labels), batch in zip(
            held.batches(batches), store.batches(batches), batches, strict=True
        ):
            assert a.dtype == torch.uint8 and a.shape == (len(batch), 3, 32, 32)
            assert a.equal(b)
            assert a_labels.tolist() == b_labels.tolist() == batch


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_also_from_a_worker(pictures, workers):
    pictures.images[7] = None
    store = ImageStore(pictures, 32, memory=0, workers=workers)
    with pytest.raises(ValueError, match="^image 7 cannot be read$"):
        list(store.batches([[0, 1], [6, 7], [8]]))


def test_the_centre_of_the_shorter_side_is_kept():
    # A red left half, a blue right half; the centre square of a 40 x 20 image is columns 10 to 29.
    array = np.zeros((20, 40, 3), np.uint8)
    array[:, :20, 0] = 255
    array[:, 20:, 2] = 255
    array[:, :10] = array[:, 30:] = 77
    np.testing.assert_array_equal(pixels(array, 20), array[:, 10:30])
    np.testing.assert_array_equal(pixels(array, 10, resize=20), array[5:15, 15:25])
    # What has the right scale already is cut at whole pixels.
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels(noise, 27, resize=32), noise[2:29, 2:29])


def test_a_rectangle_is_cut_out_or_squeezed_in():
    # Each column of a 40 x 20 image (width x height) has its own value.
    array = np.repeat(np.arange(0, 240, 6, dtype=np.uint8)[None, :, None], 20, axis=0).repeat(3, axis=2)
    np.testing.assert_array_equal(pixels(array, (20, 10)), array[:, 15:25])
    squeezed = pixels(array, (20, 10), keep_aspect=False)[0, 1:-1, 0].astype(int)
    # Four columns become one: the mean of theirs, inside the image.
    np.testing.assert_allclose(squeezed, array[0, :, 0].reshape(10, 4).mean(1)[1:-1], atol=1)
    # The centre of 20 x 10 in an image squeezed to 40 x 20: half of its width.
    centre = pixels(array, (20, 10), keep_aspect=False, resize=20)[0, 1:-1, 0]
    np.testing.assert_allclose(centre, array[0, 10:30, 0].reshape(10, 2).mean(1)[1:-1], atol=1.5)


@pytest.mark.slow
@pytest.mark.parametrize("w", [31, 211, 500])
def test_no_size_makes_the_part_leave_the_image(w):
    for size in (28, 29, (37, 18), (17, 36)):
        assert (pixels(np.full((w + 3, w, 3), 9, np.uint8), size) == 9).all()


def test_resize_below_size_is_refused(pictures):
    with pytest.raises(ValueError, match="resize=20: must be at least size=32"):
        ImageStore(pictures, 32, resize=20)


@pytest.mark.parametrize("kind", ["photo", "crop", "person", "drawing"])
def test_augmentation_is_seeded_varied_and_in_range(kind):
    images = torch.randint(0, 256, (16, 3, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:] = images[0]
    first = augment(images, kind, 32, generator=torch.Generator().manual_seed(1))
    assert first.shape == (16, 3, 32, 32) and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1
    assert first.equal(augment(images, kind, 32, generator=torch.Generator().manual_seed(1)))
    assert not first.equal(augment(images, kind, 32, generator=torch.Generator().manual_seed(2)))
    different = len({tuple(image.flatten()[:50].tolist()) for image in first})
    # A person moves by whole pixels: at 32 px, one to each side, mirrored or not.
    assert different == 16 if kind != "person" else 4 < different <= 18


def test_photographs_are_mirrored_and_drawings_never():
    # Left dark, right bright: every variation that is not mirrored keeps that order.
    ramp = torch.linspace(0, 255, 64).to(torch.uint8).expand(64, 3, 64, 64)
    rises = {}
    for kind in ("photo", "drawing"):
        varied = augment(ramp, kind, 56, generator=torch.Generator().manual_seed(0))
        rises[kind] = (varied[:, 0, 28, -1] > varied[:, 0, 28, 0]).float().mean().item()
    assert 0.25 < rises["photo"] < 0.75
    assert rises["drawing"] == 1


@pytest.mark.parametrize(("kind", "least", "atol"), [("photo", 0.5, 0.1), ("crop", 0.08, 0.04)])
def test_a_part_of_a_photograph_lies_inside_and_is_undistorted(kind, least, atol):
    # Pixel values encode their own coordinates, so each variation tells which part it shows.
    y, x = torch.meshgrid(torch.arange(64), torch.arange(48), indexing="ij")
    image = torch.stack([x * 3, y * 3, 0 * x]).to(torch.uint8).expand(500, 3, 64, 48)
    varied = augment(image, kind, (32, 24), generator=torch.Generator().manual_seed(0)) * 255 / 3
    columns, rows = varied[:, 0, 16], varied[:, 1, :, 12]
    width = (columns[:, -1] - columns[:, 0]).abs() * 24 / 23 / 48
    height = (rows[:, -1] - rows[:, 0]) * 32 / 31 / 64
    # At the border the outermost half pixel repeats itself, which takes up to 2 percent off each side.
    assert least - 0.03 < (width * height).min() < least + atol and (width * height).max() > 0.9
    assert ((width / height) > 0.7).all() and ((width / height) < 1.43).all()
    assert columns.min() >= 0 and columns.max() <= 47.001 and rows.min() >= 0 and rows.max() <= 63.001


def test_a_person_is_shifted_by_whole_pixels_into_black():
    y, x = torch.meshgrid(torch.arange(256), torch.arange(128), indexing="ij")
    image = torch.stack([x + 100, y // 2 + 100, 0 * x + 255]).clamp(max=255).to(torch.uint8).expand(64, 3, 256, 128)
    varied = augment(image, "person", (256, 128), generator=torch.Generator().manual_seed(0)) * 255
    inside = varied[:, 2] > 254
    rows, columns = inside.any(2).sum(1), inside.any(1).sum(1)
    assert rows.min() == 246 and rows.max() == 256 and columns.min() == 118 and columns.max() == 128
    torch.testing.assert_close(varied, varied.round(), rtol=0, atol=0.05)
    # What is not image is black, and what is image keeps its values: none below 100.
    assert (varied[:, 0][~inside] < 0.05).all() and (varied[:, 0][inside] > 99.9).all()


def test_erasing_puts_the_mean_colour_into_one_rectangle_of_the_right_area():
    images = torch.full((2000, 3, 64, 32), 255, dtype=torch.uint8)
    plain = augment(images, "none", (64, 32))
    erased = augment(images, "none", (64, 32), erasing=0.5, generator=torch.Generator().manual_seed(0))
    gone = (erased != plain).any(1)
    assert 0.45 < gone.flatten(1).any(1).float().mean() < 0.55
    mean = torch.tensor([0.485, 0.456, 0.406])
    assert erased.permute(0, 2, 3, 1)[gone].equal(mean.expand(int(gone.sum()), 3))
    for image in gone[:400][gone[:400].flatten(1).any(1)]:
        rows, columns = image.any(1).sum().item(), image.any(0).sum().item()
        assert image.sum() == rows * columns  # a full rectangle
        # Rounding to whole pixels moves each side by half a pixel.
        assert 0.02 <= (rows + 0.5) * (columns + 0.5) / 2048 and (rows - 0.5) * (columns - 0.5) / 2048 <= 0.4
        assert (rows + 0.5) / (columns - 0.5) > 0.3 and (rows - 0.5) / (columns + 0.5) < 1 / 0.3
    always = augment(images, "none", (64, 32), erasing=1.0, generator=torch.Generator().manual_seed(1))
    area = (always != plain).any(1).flatten(1).float().mean(1)
    # Uniform in [0.02, 0.4]: mean 0.21, standard deviation 0.11, so three standard errors are 0.0074; rounding adds a
    # bit.
    assert area.min() > 0 and abs(area.mean() - 0.21) < 0.01
    assert plain.equal(augment(images, "none", (64, 32), erasing=0.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["none", "photo", "crop", "person", "drawing"])
def test_every_device_draws_the_same_variations(kind):
    images = torch.randint(0, 256, (8, 3, 64, 32), dtype=torch.uint8)
    both = [
        augment(images.to(device), kind, (64, 32), erasing=0.5, generator=torch.Generator().manual_seed(3)).cpu()
        for device in ("cpu", "cuda")
    ]
    torch.testing.assert_close(*both, rtol=1e-4, atol=1e-4)


def test_no_augmentation_only_resizes():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert augment(images, "none", 32).equal(images / 255)
    assert augment(images, "none", 16).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="augmentation='blur': must be one of none, photo, crop, person, drawing"):
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
