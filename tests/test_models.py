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


def test_bytes_are_fractions_of_255_and_grey_is_luminance():
    model = models.build("conv4").eval()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    torch.testing.assert_close(model(pixels), model(pixels / 255))
    model, colour = models.build("conv4", channels=1).eval(), torch.rand(1, 3, 28, 28)
    grey = (colour * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    torch.testing.assert_close(model(colour), model(grey))


def test_efficientnet_comes_with_weights_and_without_classifier():
    known, again = (models.build("efficientnet_lite0").eval() for _ in range(2))
    blank = models.build("efficientnet_lite0", pretrained=False)
    assert not any(name.startswith("body.network._fc") for name, _ in known.named_parameters())
    assert not next(known.parameters()).equal(next(blank.parameters()))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        embedding = known(images)
        assert embedding.shape == (2, 1280) == (2, known.embedding_size)
        assert embedding.equal(again(images))


def test_resnet50_and_its_larger_map_from_the_same_weights():
    made = {}
    for stride in (2, 1):
        torch.manual_seed(0)
        made[stride] = models.build("resnet50", pretrained=False, last_stride=stride).eval()
    assert made[1].state_dict().keys() == made[2].state_dict().keys()
    images = torch.rand(1, 3, 64, 32)
    with torch.no_grad():
        assert made[2](images).shape == (1, 2048)
        assert made[2].feature_map(images).shape == (1, 2048, 2, 1)
        assert made[1].feature_map(images).shape == (1, 2048, 4, 2)


def test_resnet50_without_network(monkeypatch):
    import torchvision.models

    def unreachable(**_):
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models, "resnet50", unreachable)
    message = "backbone=resnet50: .* could not be downloaded .*resnet50-.*pth into .*checkpoints"
    with pytest.raises(ConnectionError, match=message):
        models.build("resnet50")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: models.build("vgg"), "backbone='vgg': must be one of conv4, efficientnet_lite0, .*, timm:NAME"),
        (lambda: models.build("conv4", pretrained=True), "conv4 has no pretrained weights"),
        (lambda: models.build("conv4", channels=2), "channels=2"),
        (lambda: models.build("conv4")(torch.rand(1, 3, 27, 40)), "27 x 40 px: this backbone needs 28 px"),
        (lambda: models.build("conv4")(torch.rand(1, 2, 32, 32)), r"images has shape \(1, 2, 32, 32\)"),
        (lambda: models.build("resnet50", last_stride=3), "last_stride=3: must be 1 or 2"),
        (lambda: models.build("conv4", last_stride=1), "last_stride: is no option of backbone=conv4"),
        (lambda: models.build("bn_inception"), "weights=None: bn_inception needs the path of bn_inception-"),
        (lambda: models.build("timm:resnt50"), "backbone='timm:resnt50': timm has no such model; near: .*resnet50"),
        (
            lambda: models.build("timm:test_mambaout", pretrained=False, image_size=(96, 96)),
            "backbone='timm:test_mambaout': no embedding of 96 x 96 px",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bn_inception_is_the_published_architecture():
    model = models.build("bn_inception", pretrained=False).eval()
    with torch.no_grad():
        assert model(torch.rand(2, 3, 64, 48)).shape == (2, 1024)
        assert model.feature_map(torch.rand(1, 3, 224, 224)).shape == (1, 1024, 7, 7)
    state = model.body.state_dict()
    # 69 convolutions, each with a bias, each followed by a batch normalisation of four values a channel and a counter.
    assert sum(name.endswith("_bn.running_mean") for name in state) == 69
    # Shapes that the weight files in circulation hold.
    for name, shape in {
        "conv1_7x7_s2.weight": (64, 3, 7, 7),
        "conv2_3x3_bn.running_var": (192,),
        "inception_3a_pool_proj.weight": (32, 192, 1, 1),
        "inception_3c_double_3x3_2.weight": (96, 96, 3, 3),
        "inception_4c_3x3.bias": (160,),
        "inception_4e_double_3x3_reduce.weight": (192, 608, 1, 1),
        "inception_5a_1x1.weight": (352, 1056, 1, 1),
        "inception_5b_double_3x3_1_bn.weight": (224,),
    }.items():
        assert state[name].shape == shape
    # The input convention: BGR, 0 to 255, less 104, 117, 128.
    seen = []
    model.body.conv1_7x7_s2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    model(pixels)
    torch.testing.assert_close(seen[0][0, :, 0, 0], torch.tensor([30.0 - 104, 20 - 117, 10 - 128]), rtol=0, atol=1e-3)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_bn_inception_takes_the_files_in_circulation(tmp_path, suffix):
    from safetensors.torch import save_file

    torch.manual_seed(0)
    source = models.build("bn_inception", pretrained=False)
    # With a classifier, batch-norm parameters as (1, C), and no counters: all three occur.
    state = {name: value for name, value in source.body.state_dict().items() if not name.endswith("tracked")}
    state["inception_3a_1x1_bn.weight"] = state["inception_3a_1x1_bn.weight"][None]
    state |= {"last_linear.weight": torch.zeros(98, 1024), "last_linear.bias": torch.zeros(98)}
    file = tmp_path / f"weights{suffix}"
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    loaded = models.build("bn_inception", weights=str(file))
    for name, value in source.state_dict().items():
        assert loaded.state_dict()[name].equal(value), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {k: v for k, v in state.items() if k != "conv2_3x3.bias"}, "conv2_3x3.bias is missing;"),
        (lambda state: state | {"extra.weight": torch.zeros(1)}, "extra.weight is not part of the network"),
        (
            lambda state: state | {"conv1_7x7_s2.weight": torch.zeros(64, 1, 7, 7)},
            r"conv1_7x7_s2.weight has shape \(64, 1, 7, 7\) in place of \(64, 3, 7, 7\)",
        ),
        (lambda _: {"a": torch.zeros(1)}, "conv1_7x7_s2.weight is missing; .* and [0-9]+ more; expected"),
        (lambda _: [1, 2], "holds no parameters by name"),
        (lambda _: b"no weights", "is no readable file of weights"),
    ],
)
def test_weights_that_do_not_fit_are_named_in_one_line(tmp_path, change, message):
    content, file = change(models.build("bn_inception", pretrained=False).body.state_dict()), tmp_path / "weights.pth"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match=f"weights.pth: .*{message}") as caught:
        models.build("bn_inception", weights=str(file))
    assert "\n" not in str(caught.value) and "bn_inception-52deb4733.pth" in str(caught.value)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.pth: there is no such file; it must be bn_inception-52deb4733"):
        models.build("bn_inception", weights=str(tmp_path / "absent.pth"))


def test_the_neck_stands_before_comparison_and_not_before_the_metric_loss():
    torch.manual_seed(0)
    model = models.build("conv4").add_neck()
    before, images = model.feature_map(torch.rand(4, 3, 28, 28)).mean((2, 3)), torch.rand(4, 3, 28, 28)
    model.neck.running_mean.fill_(2.0)
    model.neck.running_var.fill_(4.0)
    model.train()
    torch.testing.assert_close(model.embedding(before), before)
    model.eval()
    # Batch normalisation by running statistics, written out.
    torch.testing.assert_close(model.embedding(before), (before - 2) / (4 + model.neck.eps) ** 0.5)
    torch.testing.assert_close(model(images), model.neck(model.feature_map(images).mean((2, 3))))
    model.retrieve_after_neck = False
    torch.testing.assert_close(model.embedding(before), before)
    assert not model.neck.bias.requires_grad and model.neck.weight.requires_grad


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_efficientnet", "mobilenetv3_small_050"])
@pytest.mark.parametrize("size", [None, (96, 64)])
def test_networks_of_timm_keep_their_convention(name, size):
    import timm

    model = models.build(f"timm:{name}", pretrained=False, image_size=size).eval()
    theirs = timm.create_model(name, num_classes=0).eval()
    torch.testing.assert_close(model.mean.flatten(), torch.tensor(theirs.pretrained_cfg["mean"]))
    height, width = size or theirs.pretrained_cfg["input_size"][1:]
    with torch.no_grad():
        length = theirs(torch.rand(1, *theirs.pretrained_cfg["input_size"])).shape[1]
        assert model(torch.rand(2, 3, height, width)).shape == (2, length) and model.embedding_size == length
    assert models.backbone(f"timm:{name}").has_weights


def test_timm_without_network(monkeypatch):
    import timm

    def unreachable(*_, **settings):
        raise OSError("no network\nno luck")

    monkeypatch.setattr(timm, "create_model", unreachable)
    message = "its weights could not be had .OSError: no network.* choose pretrained=False"
    with pytest.raises(ConnectionError, match=message):
        models.build("timm:test_vit")
