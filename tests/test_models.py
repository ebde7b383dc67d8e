"""Backbones: shapes, input conventions, and what happens where weights cannot be had."""

from urllib.error import URLError

import pytest
import torch

from gl_core import models


@pytest.mark.parametrize("size", [28, 33, 64])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shown", [1, 3])
def test_conv4_takes_grey_and_colour_of_any_size(size, channels, shown):
    model = models.build("conv4", channels=channels).eval()
    assert model(torch.rand(2, shown, size, size)).shape == (2, model.embedding_size)


def test_bytes_and_fractions_are_the_same_image():
    model = models.build("conv4").eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model(pixels), model(pixels / 255))


def test_the_embedding_is_the_mean_of_the_feature_map():
    model = models.build("conv4").eval()
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(model(images), model.feature_map(images).mean((2, 3)))


def test_a_grey_network_sees_luminance():
    model = models.build("conv4", channels=1).eval()
    colour = torch.rand(1, 3, 28, 28)
    grey = (colour * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(model(colour), model(grey))


def test_efficientnet_comes_with_weights_that_know_images():
    generator = torch.Generator().manual_seed(0)
    known, blank = (
        models.build("efficientnet_lite0").eval(),
        models.build("efficientnet_lite0", pretrained=False).eval(),
    )
    assert known.embedding_size == 1280
    names = dict(known.named_parameters())
    assert not any(name.startswith("body.network._fc") for name in names)
    first = next(iter(names))
    assert not torch.equal(names[first], dict(blank.named_parameters())[first])
    again = models.build("efficientnet_lite0").eval()
    images = torch.rand(2, 3, 64, 64, generator=generator)
    with torch.no_grad():
        embedding = known(images)
        assert embedding.shape == (2, 1280)
        assert embedding.equal(again(images))


def test_resnet50_without_weights_and_without_network(monkeypatch):
    import torchvision.models

    model = models.build("resnet50", pretrained=False).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 2048)

    def unreachable(**_):
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models, "resnet50", unreachable)
    with pytest.raises(
        ConnectionError, match="backbone=resnet50: .* could not be downloaded .*resnet50-.*pth into .*checkpoints"
    ):
        models.build("resnet50")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.build("vgg"), "backbone='vgg': must be one of conv4, efficientnet_lite0, resnet50"),
        (lambda: models.build("conv4", pretrained=True), "conv4 has no pretrained weights"),
        (lambda: models.build("conv4", channels=2), "channels=2"),
        (lambda: models.build("conv4")(torch.rand(1, 3, 27, 40)), "27 x 40 px: this backbone needs 28 px"),
        (lambda: models.build("conv4")(torch.rand(1, 2, 32, 32)), r"images has shape \(1, 2, 32, 32\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
