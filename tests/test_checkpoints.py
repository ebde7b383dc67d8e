"""The trained network as two files: they give back the metrics of the run, and say in one line what is wrong."""

import dataclasses
import json

import pytest
import torch
from test_training import config, pictures  # noqa: F401 (a fixture)

from gl_core import datasets, training
from gl_core.inference.strategies import Strategies
from gl_core.training import checkpoints, components, records
from gl_core.training.config import Config


@pytest.fixture(scope="module")
def run(tmp_path_factory, pictures):  # noqa: F811
    """One epoch on a few pictures, in an empty book."""
    book = tmp_path_factory.mktemp("book")
    (book / "book").mkdir()
    (book / "_config.yml").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(book)
        yield training.run(config(pictures, epochs=1, device="cpu"), progress=False)


@pytest.fixture
def saved(tmp_path):
    """A small untrained network with the least of a card."""
    torch.manual_seed(0)
    config = Config.resolve(dataset="glyphs")
    card = {"config": config.as_dict(), "strategies": None}
    return checkpoints.save(tmp_path / "net", components.build_model(config), card)


def card_of(path):
    return path.with_suffix(".json")


def edit(path, **changes):
    card_of(path).write_text(json.dumps(json.loads(card_of(path).read_text()) | changes))


def test_the_files_of_a_run_give_back_its_metrics(run, pictures):  # noqa: F811
    assert run.model_path == records.project_root() / "_build" / "models" / f"{run.record['run_id']}.safetensors"
    assert f"network: _build/models/{run.record['run_id']}.safetensors" in run.report()
    model, card = checkpoints.load(run.model_path)
    assert not model.training
    train, test = (datasets.load("folder", pictures, split) for split in ("train", "test"))
    store = components.image_store(test, checkpoints.configuration(card), torch.device("cpu"))
    found = training.evaluate(model, store, cluster=True)
    assert found == run.metrics == pytest.approx(card["metrics"], rel=1e-6)
    recorded = json.loads(run.record_path.read_text())
    for name in ("run_id", "created", "commit", "config", "metrics", "versions"):
        assert card[name] == recorded[name]
    assert card["trained_on"] == train.class_names[: len(set(train.labels.tolist()))]
    assert (card["evaluation"]["classes"], card["evaluation"]["images"]) == ("unseen test classes", len(test))
    assert card["data_licence"] == "yours" and card["architecture"]["backbone"] == "conv4"
    assert (card["preprocessing"]["height"], card["preprocessing"]["mean"]) == (28, [0.5, 0.5, 0.5])


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "resnet50", "pretrained": False, "last_stride": 1, "image_size": 32},
        {"backbone": "bn_inception", "weights": "inception.pth", "image_size": 32},
        {"backbone": "conv4", "bn_neck": True, "retrieve_after_neck": True, "image_width": 40},
    ],
    ids=lambda settings: settings["backbone"],
)
def test_a_network_comes_back_with_its_options(tmp_path, settings):
    config = Config.resolve(dataset="glyphs", **settings)
    known = dataclasses.replace(config, pretrained=False, weights=None)  # the file of weights is not there
    model = components.build_model(known).to(memory_format=torch.channels_last)
    kept = {name: value for name, value in config.as_dict().items() if name != "weights"}
    checkpoints.save(tmp_path / "a.b.safetensors", model, {"config": kept})
    again, card = checkpoints.load(tmp_path / "a.b")
    images = torch.rand(2, 3, 32, 40)
    with torch.inference_mode():
        assert again(images).equal(model.eval()(images.contiguous(memory_format=torch.channels_last)))
    assert checkpoints.configuration(card).input_size == config.input_size


def test_strategies_are_part_of_the_card_and_the_fingerprint_is_that_of_what_embeds(saved):
    before = checkpoints.read_card(saved)
    assert checkpoints.strategies(before) == Strategies()
    edit(saved, metrics={"R@1": 0.5})
    same = checkpoints.read_card(saved)
    chosen = Strategies(mirror=True, beta=0.5)
    edit(saved, strategies=chosen.as_dict())
    searched = checkpoints.read_card(saved)
    assert checkpoints.strategies(searched) == chosen
    edit(saved, strategies=None, config=before["config"] | {"center_crop": 0.5})
    seen = checkpoints.read_card(saved)
    assert checkpoints.fingerprint(same) == checkpoints.fingerprint(before)
    assert len({checkpoints.fingerprint(card) for card in (before, searched, seen)}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [({"backbone": "efficientnet_lite0"}, "efficient.*missing"), ({"bn_neck": True}, "conv4: neck.weight is missing")],
)
def test_weights_of_another_architecture(saved, change, message):
    edit(saved, config=checkpoints.read_card(saved)["config"] | change)
    with pytest.raises(ValueError, match=f"net.safetensors: weights of another architecture than backbone={message}"):
        checkpoints.load(saved)


@pytest.mark.parametrize("left", [0, -1])
def test_truncated_weights(saved, left):
    saved.write_bytes(saved.read_bytes()[:left])
    with pytest.raises(ValueError, match="net.safetensors: cut off or damaged"):
        checkpoints.load(saved)


def test_weights_of_another_run(saved):
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match="not the weights that net.json was written for"):
        checkpoints.load(saved)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("{", "holds no valid JSON"),
        ("[]", "names no format"),
        ('{"format": 99}', "format=99: must be at most 1; a newer gl_core reads it"),
        ('{"format": 1}', "the card is broken, it has no config"),
        ('{"format": 1, "config": {"colour": 1}, "sha256": ""}', "config names 'colour', which is no setting"),
        ('{"format": 1, "config": {"backbone": "vgg"}, "sha256": ""}', "the card is broken: backbone='vgg': must be"),
    ],
)
def test_broken_cards(saved, card, message):
    card_of(saved).write_text(card)
    with pytest.raises(ValueError, match=message):
        checkpoints.load(saved)


@pytest.mark.parametrize(("missing", "what"), [("net.json", "card"), ("net.safetensors", "weights")])
def test_a_missing_half_is_named(saved, missing, what):
    (saved.parent / missing).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{missing}: there is no such file \({what} missing"):
        checkpoints.load(saved)
