"""What a GPU adds: the loss beside a ResNet-50 step, the training loop beside the bare model, evaluation at full size.

Without a GPU there are no cases, and the table says so.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.measure import OURS, Case
from benchmarks.neighbours import embeddings
from gl_core import devices, models
from gl_core.evaluation import clustering_metrics, retrieval_metrics
from gl_core.loss import GroupLoss
from gl_core.training import Learner, build_loss, build_model, train_step
from gl_core.training.components import build_optimizer
from gl_core.training.config import Config

BARE, UPDATED = "bare model with cross-entropy", "bare model, cross-entropy and update, of one batch that is ready"
BATCH, SIDE, CLASSES = 60, 224, 11_318


def cases(quick: bool) -> list[Case]:
    if not torch.cuda.is_available():
        return []
    return [
        Case(
            name=f"ResNet-50 step, batch {BATCH}, {SIDE} px, bf16, {CLASSES:,} classes",
            prepare=_step,
            repeats=2 if quick else 31,
            target="the loss takes under 5 % of the step",
            bounds={BARE: 1 / 1.05},
            memory="gpu",
        ),
        Case(
            name=f"training step with stored images and augmentation, ResNet-50, batch {BATCH}, {SIDE} px, bf16",
            prepare=lambda: whole_step(_settings(), CLASSES),
            repeats=2 if quick else 31,
            target="at least 85 % of the speed of the bare model",
            bounds={UPDATED: 0.85},
            memory="gpu",
        ),
        Case(
            name="R@K, MAP@R, NMI and AMI of 60,502 x 512",
            prepare=lambda: _evaluation(2_000 if quick else 60_502),
            repeats=1,
            target="under 30 s",
            seconds=30.0,
            memory="gpu",
        ),
    ]


def _step() -> dict:
    device = torch.device("cuda")
    model = models.build("resnet50", pretrained=False).to(device, memory_format=torch.channels_last).train()
    loss = GroupLoss(CLASSES, model.embedding_size).to(device)
    images = torch.rand(BATCH, 3, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(10, device=device).repeat_interleave(BATCH // 10)
    parameters = [*model.parameters(), *loss.parameters()]

    def step(with_group: bool):
        with torch.autocast("cuda", torch.bfloat16):
            embeddings = model(images)
            value = loss(embeddings, labels) if with_group else F.cross_entropy(loss.classifier(embeddings), labels)
        value.backward()
        for parameter in parameters:
            parameter.grad = None
        torch.cuda.synchronize()

    return {OURS: lambda: step(True), BARE: lambda: step(False)}


def _settings() -> Config:
    """As a run of Stanford Online Products has it: 10 classes of 6 images each."""
    return Config(
        dataset="sop", backbone="resnet50", pretrained=False, image_size=SIDE, classes_per_batch=10,
        samples_per_class=BATCH // 10, augmentation="photo", precision="bf16", device="cuda",
    )  # fmt: skip


def whole_step(config: Config, num_classes: int) -> dict[str, Callable[[], float]]:
    """A training step from images stored on the device, and one of the bare model; both with the same optimiser."""
    device = devices.choose_device(config.device)
    fabric = devices.fabric(device, config.precision)
    labels = torch.arange(config.classes_per_batch, device=device).repeat_interleave(config.samples_per_class)
    height, width = (round(side * 8 / 7) for side in config.input_size)
    stored = torch.randint(256, (4 * len(labels), 3, height, width), dtype=torch.uint8, device=device)
    images = torch.rand(len(labels), 3, *config.input_size, device=device).contiguous(memory_format=torch.channels_last)
    host, generator = torch.arange(len(labels)), torch.Generator().manual_seed(0)

    def parts():
        model = build_model(config).to(device, memory_format=torch.channels_last)
        loss = build_loss(config, num_classes, model.embedding_size)
        learner = Learner(model, loss, freeze_batch_norm=config.freeze_batch_norm).to(device).train()
        return learner, *fabric.setup(learner, build_optimizer(config, learner))

    _, learner, optimizer = parts()
    plain, _, plain_optimizer = parts()

    def ours():
        batch = stored[devices.send(host, device)]
        value, _ = train_step(config, fabric, learner, optimizer, batch, labels, generator=generator)
        return value.item()

    def bare():
        with fabric.autocast():
            value = F.cross_entropy(plain.loss.classifier(plain.backbone(images)), labels)
        plain_optimizer.zero_grad()
        fabric.backward(value)
        plain_optimizer.step()
        return value.item()

    return {OURS: ours, UPDATED: bare}


def _evaluation(n: int) -> dict:
    vectors, labels = embeddings(n, 512)
    vectors, labels = vectors.cuda(), torch.from_numpy(labels).cuda()

    def evaluate():
        found = retrieval_metrics(vectors, labels) | clustering_metrics(vectors, labels)
        torch.cuda.synchronize()
        return found

    return {OURS: evaluate}
