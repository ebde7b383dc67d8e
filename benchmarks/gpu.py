"""What a GPU adds: the loss beside a ResNet-50 step, the training loop beside the bare model, evaluation at full size.

Without a GPU there are no cases, and the table says so.
"""

import torch
import torch.nn.functional as F

from benchmarks.measure import OURS, Case
from benchmarks.neighbours import embeddings
from gl_core import models
from gl_core.evaluation import clustering_metrics, retrieval_metrics
from gl_core.loss import GroupLoss

BARE = "bare model with cross-entropy"
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
            memory=False,
        ),
        Case(
            name="R@K, MAP@R, NMI and AMI of 60,502 x 512",
            prepare=lambda: _evaluation(2_000 if quick else 60_502),
            repeats=1,
            target="under 30 s",
            seconds=30.0,
            memory=False,
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


def _evaluation(n: int) -> dict:
    vectors, labels = embeddings(n, 512)
    vectors, labels = vectors.cuda(), torch.from_numpy(labels).cuda()

    def evaluate():
        found = retrieval_metrics(vectors, labels) | clustering_metrics(vectors, labels)
        torch.cuda.synchronize()
        return found

    return {OURS: evaluate}
