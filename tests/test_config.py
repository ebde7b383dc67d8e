"""Settings: what wins over what, and what is refused."""

import dataclasses
import json

import pytest

from gl_core.training.config import Config


def test_given_values_win_and_none_means_what_suits():
    assert Config.resolve(epochs=None).epochs == Config.resolve().epochs
    for profile in ("quick", "full"):
        config = Config.resolve(profile, dataset="glyphs", epochs=1, image_size=40, learning_rate=0.5)
        assert (config.epochs, config.image_size, config.learning_rate, config.profile) == (1, 40, 0.5, profile)


def test_profile_only_sets_defaults_and_never_cuts_a_named_data_set():
    assert Config.resolve("quick").epochs < Config.resolve("full").epochs
    for dataset in ("omniglot", "cars196_half", "folder"):
        quick, full = (Config.resolve(profile, dataset=dataset).as_dict() for profile in ("quick", "full"))
        assert quick | {"profile": "full"} == full


def test_a_pretrained_backbone_is_handled_gently():
    gentle = Config.resolve(dataset="folder")
    assert gentle.backbone == "efficientnet_lite0" and gentle.augmentation == "photo"
    assert gentle.freeze_batch_norm and gentle.choose_epochs and gentle.average_weights > 0
    assert gentle.learning_rate < Config.resolve(dataset="folder", backbone="conv4").learning_rate
    blank = Config.resolve(dataset="folder", pretrained=False)
    assert not blank.freeze_batch_norm and not blank.choose_epochs


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"datset": "glyphs"}, "unknown setting 'datset': must be one of dataset, "),
        ({"dataset": "cifar"}, "dataset='cifar': must be one of .*glyphs"),
        ({"method": "tripled"}, "method='tripled': must be one of group_loss, cross_entropy"),
        ({"backbone": "vgg"}, "backbone='vgg': must be one of conv4"),
        ({"epochs": "ten"}, "epochs='ten': must be a whole number, 0 or more"),
        ({"epochs": True}, "epochs=True: must be a whole number, 0 or more"),
        ({"pretrained": 1}, "pretrained=1: must be true or false"),
        ({"image_size": 20}, "image_size=20: must be a whole number, 28 or more"),
        ({"image_size": 10**9}, "image_size=1000000000: must be a whole number, 1 or more and at most 4096"),
        ({"data_root": ""}, "data_root='': must be a string, not empty, or None"),
        ({"temperature": float("inf")}, "temperature=inf: must be a number above 0"),
        ({"held_out": 1.0}, "held_out=1.0: must be a number above 0 and below 1"),
        ({"seed": -1}, "seed=-1: must be a whole number, 0 or more and below 4294967296"),
        ({"num_anchors": 8}, "num_anchors=8: must be below samples_per_class=8"),
        ({"method": "triplet", "temperature": 5.0}, "temperature=5.0: does nothing with method=triplet"),
        ({"preset": "vogue"}, "preset='vogue': must be one of None, cub, cars196, sop, reid"),
        ({"backbone": "bn_inception"}, "weights=None: bn_inception needs the path of bn_inception-52deb4733"),
        ({"weights": "x.pth"}, "weights='x.pth': must be None for backbone=conv4"),
        ({"last_stride": 1}, "last_stride=1: must be 2 for backbone=conv4; resnet50 alone"),
        ({"last_stride": 3, "backbone": "resnet50"}, "last_stride=3: must be one of 1, 2"),
        ({"bn_neck": True, "method": "triplet"}, "bn_neck=True: must be False for method=triplet"),
        ({"random_erasing": 1.5}, "random_erasing=1.5: must be a number, 0 or more and at most 1"),
        ({"evaluate_on": "train"}, "evaluate_on='train': must be one of test, held_out"),
    ],
)
def test_bad_settings_are_named_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as refused:
        Config.resolve(**given)
    assert len(str(refused.value).splitlines()) == 1


def test_what_does_nothing_is_accepted_where_it_was_not_chosen():
    """By default, from a preset, or in a copy of a configuration of the Group Loss."""
    assert Config.resolve(method="triplet", temperature=10.0, samples_per_class=2).num_anchors == 2
    assert Config.resolve(preset="sop", method="triplet", dataset="glyphs", backbone="conv4").temperature == 54
    group_loss = Config.resolve(temperature=5.0)
    assert dataclasses.replace(group_loss, method="cross_entropy").temperature == 5


def test_settings_are_plain_values_and_a_whole_number_may_stand_for_a_float():
    config = dataclasses.replace(Config.resolve(seed=3), temperature=7)
    assert config.temperature == 7 and type(config.temperature) is float
    assert config == Config.resolve(seed=3, temperature=7.0) and hash(config) == hash(dataclasses.replace(config))
    assert Config(**json.loads(json.dumps(config.as_dict()))) == config
    with pytest.raises(ValueError, match="^epochs=-1: must be a whole number, 0 or more$"):
        dataclasses.replace(config, epochs=-1)


def test_parameters_of_a_chapter():
    """Other names are passed over; `papermill -p iterations '[1, 3]'` sets a string, which is no list."""
    declared = {"iterations": list, "seeds": list[int], "epochs": int}
    with pytest.raises(ValueError, match=r"iterations='\[1, 3\]': must be a list; .* -y 'iterations: \[1, 3\]'"):
        Config.from_parameters({"__annotations__": declared, "iterations": "[1, 3]", "seeds": None})
    assert Config.from_parameters({"__annotations__": declared, "iterations": [1, 3], "epochs": 2}).epochs == 2


@pytest.mark.parametrize(
    ("preset", "values"),  # the table of the authors' released code
    [
        ("cub", (6, 9, 2, 24.0, 1.56e-4, 6.06e-6)),
        ("cars196", (5, 7, 3, 79.0, 2.0e-4, 4.86e-7)),
        ("sop", (10, 6, 2, 54.0, 6.08e-4, 5.27e-12)),
    ],
)
def test_presets_are_the_published_settings_and_only_set_defaults(preset, values):
    names = ("classes_per_batch", "samples_per_class", "num_anchors", "temperature", "learning_rate", "weight_decay")
    for profile in ("quick", "full"):
        config = Config.resolve(profile, preset=preset, dataset="folder", weights="bn_inception.pth")
        assert tuple(getattr(config, name) for name in names) == values
        assert (config.epochs, config.schedule, config.step_at, config.finetune_epochs) == (70, "step", 31, 10)
        assert (config.backbone, config.optimizer, config.num_iterations) == ("bn_inception", "radam", 1)
        assert (config.image_size, round(config.image_size / config.center_crop)) == (227, 256)
        assert not config.choose_epochs and not config.freeze_batch_norm and not config.average_weights
    given = Config.resolve(preset=preset, dataset="omniglot", backbone="conv4", epochs=3, temperature=5.0)
    assert (given.dataset, given.backbone, given.epochs, given.temperature) == ("omniglot", "conv4", 3, 5.0)
    assert given.samples_per_class == values[1] and given.preset == preset


def test_the_recipe_of_re_identification():
    config = Config.resolve(preset="reid", dataset="folder")
    assert config.input_size == (256, 128) and not config.keep_aspect
    assert config.augmentation == "person" and config.random_erasing == 0.5
    assert config.last_stride == 1 and config.bn_neck and config.backbone == "resnet50"
