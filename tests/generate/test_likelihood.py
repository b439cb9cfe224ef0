import pytest
import torch

import llm_adapters as la
from llm_adapters.errors import UserError
from llm_adapters.generate.likelihood import Request, log_likelihoods
from tiny import tiny_model

REQUESTS = [
    Request([5, 6, 7], [8, 9]),
    Request([5], [6]),
    Request([10, 11, 12, 13, 14, 15], [16, 17, 18, 19]),
    Request([20, 21], [22, 23, 24]),
]


def _definition(model: torch.nn.Module, request: Request) -> float:
    """One token after the other, one row alone."""
    ids, total = list(request.context), 0.0
    for token in request.continuation:
        with torch.no_grad():
            total += float(torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1)[token])
        ids.append(token)
    return total


@pytest.mark.parametrize("family", ["llama", "bloom", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_batched_scores_are_the_definition(family: str, batch_size: int) -> None:
    model = tiny_model(family)
    expected = [_definition(model, request) for request in REQUESTS]
    assert log_likelihoods(model, REQUESTS, batch_size=batch_size) == pytest.approx(expected, abs=1e-4)


def test_every_request_goes_through_its_own_adapter() -> None:
    model = tiny_model("llama")
    for name in ("lora", "prefix"):
        for parameter in la.attach(model, la.method(name), name).parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    routes = ["lora", None, "prefix", ["lora", "prefix"]]
    expected = []
    for request, route in zip(REQUESTS, routes, strict=True):
        with la.route(model, [route]):
            expected.append(_definition(model, request))
    assert log_likelihoods(model, REQUESTS, routes=routes) == pytest.approx(expected, abs=1e-4)


def test_an_empty_context_is_refused() -> None:
    with pytest.raises(UserError, match="request 1"):
        log_likelihoods(tiny_model("llama"), [Request([3], [4]), Request([], [4])])
