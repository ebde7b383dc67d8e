"""Settings: what wins over what, and what is refused."""

import pytest

from gl_core.config import Config


def test_given_values_win_and_none_means_what_suits():
    assert Config.resolve(epochs=None).epochs == Config.resolve().epochs
    for profile in ("quick", "full"):
        config = Config.resolve(profile, dataset="glyphs", epochs=1, image_size=40, learning_rate=0.5)
        assert (config.epochs, config.image_size, config.learning_rate, config.profile) == (1, 40, 0.5, profile)


def test_profile_only_sets_defaults_and_never_cuts_a_named_data_set():
    quick, full = Config.resolve("quick"), Config.resolve("full")
    assert quick.epochs < full.epochs
    for dataset in ("omniglot", "cars196_half", "folder"):
        quick, full = (
            Config.resolve("quick", dataset=dataset).as_dict(),
            Config.resolve("full", dataset=dataset).as_dict(),
        )
        assert quick | {"profile": "full"} == full


def test_a_pretrained_backbone_is_handled_gently():
    gentle = Config.resolve(dataset="folder")
    assert gentle.backbone == "efficientnet_lite0" and gentle.augmentation == "photo"
    assert gentle.freeze_batch_norm and gentle.choose_epochs and gentle.average_weights > 0
    assert gentle.learning_rate < Config.resolve(dataset="folder", backbone="conv4").learning_rate
    blank = Config.resolve(dataset="folder", pretrained=False)
    assert not blank.freeze_batch_norm and not blank.choose_epochs


def test_from_parameters_passes_over_other_names():
    assert Config.from_parameters({"epochs": 2, "keep": None, "__name__": "x"}).epochs == 2


def test_settings_are_plain_values():
    import json

    config = Config.resolve(dataset="omniglot", seed=3)
    assert Config(**json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"datset": "glyphs"}, "unknown setting 'datset': must be one of dataset, "),
        ({"dataset": "cifar"}, "dataset='cifar': must be one of .*glyphs"),
        ({"method": "tripled"}, "method='tripled': must be one of group_loss, cross_entropy"),
        ({"backbone": "vgg"}, "backbone='vgg': must be one of conv4"),
        ({"profile": "fast"}, "profile='fast': must be one of quick, full"),
        ({"epochs": "ten"}, "epochs='ten': must be int, not str"),
        ({"epochs": True}, "epochs=True: must be int, not bool"),
        ({"epochs": 2.5}, "epochs=2.5: must be int, not float"),
        ({"epochs": -1}, "epochs=-1: must be a whole number, 0 or more"),
        ({"image_size": 20}, "image_size=20: must be a whole number, 28 or more"),
        ({"data_root": 7}, "data_root=7: must be str or None, not int"),
        ({"temperature": 0}, "temperature=0.0: must be above 0"),
        ({"learning_rate": 0}, r"learning_rate=0.0: must lie in \(0, inf\)"),
        ({"held_out": 1.0}, r"held_out=1.0: must lie in \(0, 1\)"),
        ({"samples_per_class": 1}, "samples_per_class=1: must be a whole number, 2 or more"),
        ({"seed": -1}, "seed=-1"),
        ({"optimizer": "lbfgs"}, "optimizer='lbfgs': must be one of radam"),
        ({"augmentation": "blur"}, "augmentation='blur'"),
        ({"evaluate_on": "train"}, "evaluate_on='train': must be one of test, held_out"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        Config.resolve(**given)
