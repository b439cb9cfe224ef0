"""Prepacked weights compute what the linears compute, leave hooks in force, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from llm_adapters.model import prepacked as module
from llm_adapters.model.prepacked import Prepacked

pytestmark = pytest.mark.skipif(not module._available(), reason="this PyTorch has no oneDNN")


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that MKL is not at home on."""
    monkeypatch.setattr(module, "_mkl_is_at_home", lambda: False)


class _Double(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 8, bias=False), _Double(8, 8))


@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 1, 24), (3, 70, 24)])
def test_outputs_are_those_of_the_linears(shape: tuple[int, ...]) -> None:
    net = _net()
    packed = Prepacked(net)
    assert [linear for linear, _ in packed._forwards] == [net[0], net[2]]  # a linear of somebody's own is left alone
    states = torch.randn(*shape)
    with torch.inference_mode():
        expected = net(states)
        with packed():
            assert "forward" in vars(net[0])
            torch.testing.assert_close(net(states), expected)
            turned = torch.stack([states] * 24, dim=-2).mT  # not contiguous
            torch.testing.assert_close(net(turned), net(turned.contiguous()))


def test_hooks_stay_in_force_and_an_error_leaves_the_model_as_it_was() -> None:
    net = _net()
    net[0].register_forward_hook(lambda _module, _inputs, output: output * 0)
    states = torch.randn(4, 24)
    with torch.inference_mode(), Prepacked(net)():
        torch.testing.assert_close(net(states), net(-states))
    with pytest.raises(KeyError), Prepacked(net)():
        raise KeyError
    assert not any("forward" in vars(part) for part in net)


def test_what_it_does_not_know_or_has_no_room_for_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Prepacked(_net().double())._forwards == []
    with monkeypatch.context() as intel:
        intel.setattr(module, "_mkl_is_at_home", lambda: True)
        assert Prepacked(_net())._forwards == []
    with monkeypatch.context() as without:
        without.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
        assert Prepacked(_net().bfloat16())._forwards == []
    with monkeypatch.context() as without:
        without.setattr(module, "_available", lambda: False)
        without.delattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")  # as in a PyTorch without oneDNN
        assert Prepacked(_net().bfloat16())._forwards == []
    monkeypatch.setattr(module, "free_bytes", lambda _device: 4 * 4 * (24 * 40 + 40 * 8) - 1)
    assert Prepacked(_net())._forwards == []
    monkeypatch.setattr(module, "total_bytes", lambda: 8 * 4 * (24 * 40 + 40 * 8) - 1)
    assert Prepacked(_net().requires_grad_(False), training=True)._forwards == []
    assert module.bytes_to_train(_net().requires_grad_(False)) == 0
    monkeypatch.setattr(module, "total_bytes", lambda: 8 * 2 * 4 * (24 * 40 + 40 * 8) - 1)
    assert module.bytes_to_train(_net().requires_grad_(False)) == 4 * (24 * 40 + 40 * 8)  # for the forward pass alone


def test_gradients_pass_through_frozen_weights_and_trained_ones_stay_as_they_are() -> None:
    net = _net()
    net[0].requires_grad_(False)
    states = torch.randn(3, 7, 24, requires_grad=True)
    outer = torch.randn(3, 7, 8)
    net(states).backward(outer)
    expected, states.grad = states.grad, None
    of_weight, net[2].weight.grad = net[2].weight.grad, None
    packed = Prepacked(net, training=True)
    assert [linear for linear, _ in packed._forwards] == [net[0]]
    assert module.bytes_to_train(net) == 2 * net[0].weight.nbytes
    with packed():
        net(states).backward(outer)
    torch.testing.assert_close(states.grad, expected)
    torch.testing.assert_close(net[2].weight.grad, of_weight)
    with packed():
        (expanded,) = torch.autograd.grad(net[0](states).sum(), states)  # a gradient without memory of its own
    torch.testing.assert_close(expanded, net[0].weight.sum(0).expand_as(states))
    assert net[0].weight.grad is None


def test_the_gradient_where_memory_was_for_the_forward_pass_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8, bias=False)).requires_grad_(False)
    states = torch.randn(5, 24, requires_grad=True)
    net(states).square().sum().backward()
    expected, states.grad = states.grad, None
    monkeypatch.setattr(module, "total_bytes", lambda: 8 * 2 * 4 * (24 * 40 + 40 * 8) - 1)
    packed = Prepacked(net, training=True)
    assert [forward.args[2] for _, forward in packed._forwards] == [None, None]  # no transposed copy
    with packed():
        net(states).square().sum().backward()
    torch.testing.assert_close(states.grad, expected)


def test_under_autocast_it_goes_the_usual_way() -> None:
    net = _net().requires_grad_(False)
    states = torch.randn(5, 24, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        expected = net(states)
        with Prepacked(net, training=True)():
            torch.testing.assert_close(net(states), expected, rtol=0, atol=0)


@pytest.mark.skipif(
    not module._pays(torch.bfloat16, training=False), reason="oneDNN multiplies no bfloat16 on this CPU"
)
def test_in_bfloat16_decoding_has_copies_and_rounds_the_result_alone() -> None:
    net = _net().requires_grad_(False)[:3].bfloat16()
    states = torch.randn(3, 7, 24).bfloat16()
    assert Prepacked(net, training=True)._forwards == []
    with torch.inference_mode(), Prepacked(net)():
        assert "forward" in vars(net[0])
        found = net[0](states)
    exact = states.double() @ net[0].weight.double().T + net[0].bias.double()
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    ("vendor", "has_mkl", "expected"),
    [("GenuineIntel", True, True), ("GenuineIntel", False, False), ("AuthenticAMD", True, False)],
)
def test_mkl_is_at_home_on_processors_of_its_maker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vendor: str, has_mkl: bool, expected: bool
) -> None:
    monkeypatch.undo()
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n")
    monkeypatch.setattr(module, "Path", lambda _known: tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    assert module._mkl_is_at_home.__wrapped__() is expected
