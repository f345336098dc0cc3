"""The one decision on a device, on machines with and without CUDA."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from infra.device import choose_device


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU number {index}")


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("requested", ["auto", "cuda"])
def test_cuda_is_taken_with_mixed_precision(requested: str) -> None:
    device = choose_device(requested)
    assert (device.kind, device.name, device.index) == ("cuda", "GPU number 0", 0)
    assert device.amp
    assert torch.device(device.torch_name) == torch.device("cuda", 0)


@pytest.mark.usefixtures("cuda")
def test_cpu_on_request_though_there_is_cuda() -> None:
    device = choose_device("cpu")
    assert (device.kind, device.index, device.amp) == ("cpu", None, False)
    assert device.name
    assert torch.device(device.torch_name) == torch.device("cpu")


@pytest.mark.usefixtures("no_cuda")
def test_auto_falls_back_to_the_cpu() -> None:
    assert choose_device().kind == "cpu"


@pytest.mark.usefixtures("no_cuda")
@pytest.mark.parametrize(
    ("built_for", "visible", "words"),
    [
        (None, None, "CPU build"),
        ("13.0", "", "CUDA_VISIBLE_DEVICES hides"),
        ("13.0", None, "built for CUDA 13.0"),
    ],
)
def test_cuda_that_is_not_there_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, visible: str | None, words: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(ValueError, match='device "cuda" is not there') as caught:
        choose_device("cuda")
    assert words in str(caught.value)
    assert 'device = "auto"' in str(caught.value)


def test_an_unknown_device_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"device 'tpu' is unknown; known: auto, cpu, cuda"):
        choose_device("tpu")


def test_a_request_for_the_cpu_does_not_import_torch() -> None:
    code = "import sys; from infra.device import choose_device; choose_device('cpu'); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
