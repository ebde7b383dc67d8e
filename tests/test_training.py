"""The training loop: what it learns, what it promises about seeds, held-out classes, interruptions and bad input."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from gl_core import datasets, devices, models, training
from gl_core.datasets.store import ImageStore
from gl_core.loss import GroupLoss, group_loss
from gl_core.sampling import GroupSampler
from gl_core.training import components, experiment, loop, records, resume
from gl_core.training.config import Config
from glbook import runs

CPU = torch.device("cpu")
SMALL = {"dataset": "folder", "backbone": "conv4", "image_size": 28, "classes_per_batch": 3, "samples_per_class": 4}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Twelve classes of eight images: a stripe pattern of the class's own angle and width, with noise."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    y, x = np.mgrid[:32, :32]
    for label in range(12):
        (root / f"class{label:02}").mkdir()
        angle, width = np.pi * label / 12, 0.5 + 0.1 * (label % 3)
        for image in range(8):
            wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * width + random.uniform(0, 6.3))
            pixels = 128 + 35 * wave + random.normal(0, 60, wave.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / f"class{label:02}" / f"{image}.png")
    return root


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty book to write records and checkpoints into."""
    (tmp_path / "book").mkdir()
    (tmp_path / "_config.yml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(pictures, **changes):
    return Config.resolve(**({"data_root": str(pictures), "epochs": 2} | SMALL | changes))


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["group_loss", "cross_entropy"])
def test_training_helps_and_is_recorded(pictures, project, method):
    settings = config(pictures, method=method, epochs=15)
    run = training.run(settings, chapter="embedding", progress=False)
    assert run.metrics["R@1"] > run.untrained["R@1"] + 0.1
    assert run.history[-1]["loss"] < run.history[0]["loss"]
    assert [entry["epoch"] for entry in run.history] == list(range(1, 16))
    (row,) = runs.load_runs(project / "_build" / "results").to_dict("records")
    assert (row["chapter"], row["method"], row["purpose"]) == ("embedding", method, None)
    assert row["R@1"] == pytest.approx(run.metrics["R@1"], rel=1e-6)
    assert row["untrained R@1"] == pytest.approx(run.untrained["R@1"], rel=1e-6)
    assert 0 <= row["NMI"] <= 1 and row["wall_time_s"] > 0
    recorded = json.loads(run.record_path.read_text())["config"]
    assert recorded | {"data_root": str(pictures), "weights": None} == settings.as_dict()
    assert "data_root" not in recorded and "weights" not in recorded
    kept = [f"_build/models/{row['run_id']}{suffix}" for suffix in (".json", ".safetensors")]
    assert files(project) == [*kept, "_build/results/" + run.record_path.name, "_config.yml"]
    assert "untrained" in run.report() and "WORSE" not in run.report()
    run.metrics["R@1"] = run.untrained["R@1"] - 0.1
    assert "Training made retrieval of these classes WORSE: R@1" in run.report()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_network_and_leaves_the_global_state(pictures, project):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = training.run(config(pictures), progress=False)
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(6)
    again = training.run(config(pictures), progress=False)
    other = training.run(config(pictures, seed=1), progress=False)
    for name, value in first.model.state_dict().items():
        assert value.equal(again.model.state_dict()[name])
    assert first.metrics == again.metrics
    assert first.history[-1]["loss"] != other.history[-1]["loss"]


@pytest.fixture
def steps(monkeypatch):
    """Counts the steps of training, and interrupts it at the one whose number is put into `stop`."""

    class Steps:
        count, stop = 0, None

        def interrupted(self, settings, stop):
            """Run until that step."""
            self.count, self.stop = 0, stop
            with pytest.raises(KeyboardInterrupt):
                training.run(settings, progress=False)
            self.count, self.stop = 0, None
            return next((records.project_root() / "_build" / "checkpoints").glob("*/final.pt"))

    steps, original = Steps(), loop.augment

    def counted(*arguments, **keywords):
        steps.count += 1
        if steps.count == steps.stop:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(loop, "augment", counted)
    return steps


BATCHES = 4  # an epoch


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(pictures, project, monkeypatch, steps):
    assert len(GroupSampler(datasets.load("folder", pictures).labels, 3, 4)) == BATCHES
    settings = config(pictures, epochs=4, average_weights=0.9)
    whole = training.run(settings, progress=False)
    checkpoint = steps.interrupted(settings, 2 * BATCHES + 3)
    saved = torch.load(checkpoint)
    assert 0 < saved["seconds"] < 100
    torch.save(saved | {"seconds": 1000.0}, checkpoint)
    monkeypatch.setattr(records, "code_hash", lambda: "a docstring was edited")
    resumed = training.run(settings, progress=False)
    assert steps.count == 2 * BATCHES and 1000 < resumed.record["wall_time_s"] < 1100
    assert resumed.metrics == whole.metrics
    assert [entry["loss"] for entry in resumed.history] == [entry["loss"] for entry in whole.history]
    assert files(project / "_build" / "checkpoints") == []


@pytest.mark.parametrize("change", ["data", "results", "settings"])
def test_a_run_with_other_data_results_or_settings_starts_anew(pictures, project, monkeypatch, steps, change):
    shutil.copytree(pictures, project / "pictures")
    settings = config(project / "pictures")
    steps.interrupted(settings, BATCHES + 1)
    if change == "data":
        Image.new("L", (32, 32)).save(project / "pictures" / "class02" / "3.png")
    elif change == "results":
        monkeypatch.setattr(resume, "RESULTS_VERSION", -1)
    else:
        settings = config(project / "pictures", weight_decay=0.5)
    training.run(settings, progress=False)
    assert steps.count == 2 * BATCHES


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut off", "another network", "an old one"])
def test_a_checkpoint_that_cannot_be_used_is_set_aside(pictures, project, capsys, steps, damage):
    settings = config(pictures)
    whole = training.run(settings, progress=False)
    checkpoint = steps.interrupted(settings, BATCHES + 1)
    saved = torch.load(checkpoint)
    if damage == "cut off":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    elif damage == "another network":
        saved["learner"]["loss.classifier.weight"] = torch.zeros(3, 256)
        torch.save(saved, checkpoint)
    else:
        del saved["seconds"]
        torch.save(saved, checkpoint)
    run = training.run(settings, progress=False)
    assert steps.count == 2 * BATCHES and run.metrics == whole.metrics
    (line,) = capsys.readouterr().err.splitlines()
    aside = checkpoint.with_suffix(".damaged")
    assert line.startswith(f"{aside}: this checkpoint cannot be used (") and line.endswith("training starts anew")
    assert files(checkpoint.parent) == [aside.name]


def test_epochs_are_chosen_on_held_out_classes_only(pictures, project, monkeypatch):
    seen, original = [], loop.evaluate

    def watch(model, images, **keywords):
        seen.append(set(images.labels.tolist()))
        return original(model, images, **keywords)

    for module in (loop, experiment):
        monkeypatch.setattr(module, "evaluate", watch)
    run = training.run(config(pictures, epochs=3, choose_epochs=True, held_out=0.4), progress=False)
    test_classes = set(range(6, 12))
    # The first and the last evaluation read the test classes, the others never.
    assert seen[0] == seen[-1] == test_classes and not any(labels & test_classes for labels in seen[1:-1])
    assert [entry["epoch"] for entry in run.selection] == [0, 1, 2, 3]
    scores = [entry["held-out R@1"] + entry["held-out MAP@R"] for entry in run.selection]
    assert len(run.history) == int(np.argmax(scores))


def test_no_training_where_none_helps(pictures, project, monkeypatch):
    for module in (loop, experiment):
        monkeypatch.setattr(module, "score", lambda entry: -entry["epoch"])
    run = training.run(config(pictures, epochs=3, choose_epochs=True, held_out=0.4), progress=False)
    assert run.history == []
    assert {k: v for k, v in run.metrics.items() if k in run.untrained} == pytest.approx(run.untrained)
    assert "No epoch of training helped" in run.report()
    untrained = training.run(config(pictures, epochs=0), progress=False)
    assert untrained.history == [] and "No epoch" not in untrained.report(), "none was asked for"


def test_tuning_never_reads_the_test_classes(pictures, project, monkeypatch):
    original = datasets.load
    monkeypatch.setattr(
        datasets, "load", lambda name, root, split: original(name, root, split) if split == "train" else 1 / 0
    )
    run = training.run(config(pictures, evaluate_on="held_out", held_out=0.4), keep="tuning", progress=False)
    assert run.record["purpose"] == "tuning" and run.record_path.parent == project / "data" / "results"


def test_frozen_batch_norm_stays_as_it_was_and_averaged_weights_are_kept(pictures):
    store, made = ImageStore(datasets.load("folder", pictures), 28), []
    for average in (0.0, 0.9):
        torch.manual_seed(0)
        model = models.build("conv4")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        asked = config(pictures, freeze_batch_norm=True, average_weights=average)
        history = training.fit(asked, model, store, device=CPU, progress=False)
        norms = [name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for name, value in model.state_dict().items():
            assert value.equal(before[name]) == (name.rsplit(".", 1)[0] in norms), name
        made.append((history[-1]["loss"], model.body[0].weight))
    assert made[0][0] == made[1][0] and not made[0][1].equal(made[1][1])


def test_the_progress_bar_says_loss_recall_speed_and_time_left(pictures, project, capfd, monkeypatch):
    monkeypatch.setattr(loop, "INTERVAL", 0.0)
    training.run(config(pictures))
    shown = capfd.readouterr().err
    assert all(word in shown for word in ("training", "loss ", "R@1 ", "images/s", "<"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes_per_batch": 7}, "classes_per_batch=7: must be at most 6, the number of classes"),
        ({"device": "cuda"}, "device='cuda': there is no such device on this machine"),
        ({"device": "abacus"}, "device='abacus': must be auto, cpu, cuda, cuda:N or mps"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(pictures, project, monkeypatch, changes, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        training.run(config(pictures, **changes), progress=False)
    assert files(project) == ["_config.yml"]


def test_diverged_training_is_named(pictures, project):
    settings = config(pictures, learning_rate=1e30, optimizer="sgd", epochs=5)
    with pytest.raises(ValueError, match="must be finite .did the training diverge"):
        training.run(settings, progress=False)
    assert not (project / "_build" / "results").exists()
    # On a GPU the loss notes it, and raises where it is read.
    store, model = ImageStore(datasets.load("folder", pictures), 28), models.build("conv4")
    loss = GroupLoss(6, model.embedding_size, checks="deferred")
    with pytest.raises(ValueError, match="must be finite .did the training diverge"):
        training.fit(settings, model, store, device=CPU, loss=loss, progress=False)


@pytest.mark.parametrize("method", ["group_loss", "cross_entropy"])
def test_omniglot_reaches_what_it_should_in_the_records(method):
    table = runs.load_runs()
    table = table[(table["dataset"] == "omniglot") & (table["method"] == method) & (table["purpose"] == "final")]
    # Ablations are recorded too; what is promised is what the defaults reach, in whichever chapter they were run.
    ours = {"num_iterations": 1, "num_anchors": 2, "temperature": 10.0, "epochs": 30}
    table = table[[ours.items() <= settings.items() for settings in table["config"]]]
    assert set(table["seed"]) >= {0, 1, 2}
    assert (table["R@1"] >= 0.80).all() and (table["MAP@R"] >= 0.40).all()
    # The chapter on strategies trains and then searches.
    assert (table.loc[table["chapter"] == "training", "wall_time_s"] <= 300).all()


@pytest.mark.thorough
@pytest.mark.slow
def test_quick_training_on_glyphs_adds_a_tenth_to_raw_pixels(project):
    from gl_core.evaluation import retrieval_metrics

    settings = Config.resolve("quick")
    assert settings.dataset == "glyphs"
    test = ImageStore(datasets.load("glyphs", split="test"), settings.image_size)
    ((pixels, labels),) = test.batches([list(range(len(test)))])
    raw = retrieval_metrics(pixels.flatten(1).float(), labels)["R@1"]
    run = training.run(settings, progress=False)
    assert run.metrics["R@1"] >= raw + 0.1


def test_the_learning_rate_falls_to_a_tenth_at_its_step(pictures, project):
    run = training.run(config(pictures, epochs=4, schedule="step", step_at=3, learning_rate=1e-3), progress=False)
    assert [entry["learning_rate"] for entry in run.history] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.slow
def test_classification_comes_first_and_hands_on_network_and_classifier(pictures, project, monkeypatch, steps):
    stages, original = [], experiment.fit

    def watch(settings, model, images, *, loss, **others):
        begin = [value.clone() for value in (*model.parameters(), *loss.parameters())]
        history = original(settings, model, images, loss=loss, **others)
        end = [value.clone() for value in (*model.parameters(), *loss.parameters())]
        stages.append((settings, begin, end, history))
        return history

    monkeypatch.setattr(experiment, "fit", watch)
    asked = config(pictures, finetune_epochs=2, epochs=3, schedule="step", weight_decay=0.5)
    whole = training.run(asked, progress=False)
    (first, _, end, history), (second, begin, _, _) = stages
    assert (first.method, first.epochs, first.weight_decay) == ("cross_entropy", 2, 0.0) and second == asked
    assert [entry["learning_rate"] for entry in history] == [3e-4, 3e-4]
    assert all(a.equal(b) for a, b in zip(end, begin, strict=True))
    # Interrupted in the stage after it, training does not begin it again.
    steps.interrupted(asked, 2 * BATCHES + BATCHES + 2)
    resumed = training.run(asked, progress=False)
    assert steps.count == 2 * BATCHES  # the epoch that was cut, and the last
    assert len(whole.history) == 3 and resumed.metrics == whole.metrics


def test_the_loss_compares_before_the_neck_and_classifies_after_it():
    torch.manual_seed(0)
    model = models.build("conv4").add_neck()
    loss = GroupLoss(3, model.embedding_size, num_anchors=1)
    learner = training.Learner(model, loss, freeze_batch_norm=True).train()
    images, labels = torch.rand(9, 3, 28, 28), torch.arange(3).repeat_interleave(3)
    value, embeddings = learner(images, labels)
    pooled = model.feature_map(images).mean((2, 3))
    torch.testing.assert_close(embeddings, pooled)
    normalised = (pooled - pooled.mean(0)) / (pooled.var(0, unbiased=False) + model.neck.eps).sqrt()
    logits = normalised @ loss.classifier.weight.T + loss.classifier.bias
    expected = group_loss(pooled, logits, labels, num_anchors=1) + torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    value.backward()
    assert model.neck.weight.grad.abs().sum() > 0
    # A second learner of the same parts changes nothing, nor is the loss other than it was.
    again, _ = training.Learner(model, loss, freeze_batch_norm=True).train()(images, labels)
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(loss.classifier(pooled), pooled @ loss.classifier.weight.T + loss.classifier.bias)


def test_the_recipe_of_re_identification_trains(pictures, project):
    asked = Config.resolve(
        preset="reid", dataset="folder", data_root=str(pictures), backbone="conv4", pretrained=False, last_stride=2,
        image_size=56, image_width=28, classes_per_batch=3, samples_per_class=4, epochs=2,
    )  # fmt: skip
    run = training.run(asked, progress=False)
    assert run.model.neck.running_mean.abs().sum() > 0
    assert len(run.history) == 2 and 0 <= run.metrics["R@1"] <= 1


def test_half_precision_is_close_to_single(pictures):
    losses, store = {}, ImageStore(datasets.load("folder", pictures), 28)
    for precision in ("32", "bf16"):
        torch.manual_seed(0)
        asked = config(pictures, precision=precision, epochs=1)
        (entry,) = training.fit(asked, models.build("conv4"), store, device=CPU, progress=False)
        losses[precision] = entry["loss"]
    assert losses["32"] != losses["bf16"] == pytest.approx(losses["32"], rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["photo", "crop", "person", "drawing", "none"])
def test_the_host_never_waits_for_the_gpu_in_a_step(pictures, kind):
    gpu = torch.device("cuda", 0)
    asked = config(pictures, augmentation=kind, random_erasing=0.5, average_weights=0.9, precision="bf16")
    store = training.image_store(datasets.load("folder", pictures), asked, gpu, training=True)
    model = training.build_model(asked).to(gpu, memory_format=torch.channels_last)
    learner = training.Learner(model, training.build_loss(asked, 6, model.embedding_size), freeze_batch_norm=False).to(
        gpu
    )
    fabric = devices.fabric(gpu, asked.precision)
    learner, optimizer = fabric.setup(learner, components.build_optimizer(asked, learner))
    sampler = GroupSampler(store.labels.cpu(), 3, 4)
    generator = torch.Generator().manual_seed(0)
    try:
        for step, (pixels, labels) in enumerate(store.batches([*sampler, *sampler])):
            training.train_step(asked, fabric, learner, optimizer, pixels, labels, generator=generator)
            if step == 1:  # the first steps set up libraries
                torch.cuda.set_sync_debug_mode("error")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_images_that_do_not_fit_into_memory_give_the_same_run(pictures, project, monkeypatch):
    held = training.run(config(pictures), progress=False)
    monkeypatch.setattr(devices, "memory_budget", lambda _: 0)
    decoded = training.run(config(pictures, workers=1), progress=False)
    assert decoded.metrics == held.metrics
    assert [entry["loss"] for entry in decoded.history] == [entry["loss"] for entry in held.history]
