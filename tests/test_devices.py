"""The processor of a run: precision, memory for images, moving tensors."""

import pytest
import torch

from gl_core import devices

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "inside"), [("auto", torch.float32), ("32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_precision_is_what_was_asked_for_and_weights_stay_float32(precision, inside):
    fabric = devices.fabric(CPU, precision)
    layer = fabric.setup(torch.nn.Linear(4, 4))
    with fabric.autocast():
        assert (torch.ones(2, 4) @ torch.ones(4, 2)).dtype == inside
    assert layer.weight.dtype == torch.float32


def test_a_precision_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="precision='fp16': needs a GPU, this run uses cpu"):
        devices.fabric(CPU, "fp16")
    with pytest.raises(ValueError, match="precision='half': must be one of auto, 32, bf16, fp16"):
        devices.fabric(CPU, "half")


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), "16-mixed"), ((8, 0), "bf16-mixed"), ((9, 0), "bf16-mixed")]
)
def test_a_gpu_computes_in_the_half_precision_that_it_has(monkeypatch, capability, expected):
    import lightning_fabric

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(lightning_fabric, "Fabric", lambda **settings: settings)
    gpu = torch.device("cuda", 1)
    assert devices.fabric(gpu) == {"accelerator": "cuda", "devices": [1], "precision": expected}
    assert devices.fabric(gpu, "32")["precision"] == "32-true"
    if capability < (8, 0):
        with pytest.raises(ValueError, match="precision='bf16': this GPU does not compute in bfloat16"):
            devices.fabric(gpu, "bf16")


def test_images_leave_room_on_a_gpu(monkeypatch):
    gpu, gib = torch.device("cuda", 0), 2**30
    free = 16 * gib
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 16 * gib))
    for _ in range(20):  # however many sets ask, the reserve stays
        free -= devices.memory_budget(gpu)
    assert 4 * gib <= free < 4.1 * gib
    free = gib
    assert devices.memory_budget(gpu) == 0
    assert devices.memory_budget(CPU) == 4 * gib


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sending_to_a_gpu_does_not_wait():
    gpu, tensor = torch.device("cuda", 0), torch.arange(6)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sent = devices.send(tensor, gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sent.cpu().equal(tensor)
