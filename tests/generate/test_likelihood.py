import pytest
import torch

import llm_adapters as la
from llm_adapters.errors import UserError
from llm_adapters.generate import generate, likelihood
from llm_adapters.generate.likelihood import Request, likelihoods, log_likelihoods
from tiny import put_on, small, tiny_model

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


def test_greedy_continuations_are_known_as_such() -> None:
    model = tiny_model("llama")
    contexts = [list(request.context) for request in REQUESTS]
    written = {c.prompt: c.ids for c in generate(model, contexts, max_new_tokens=4, stop_ids=())}
    requests = [Request(context, written[i][: i + 1]) for i, context in enumerate(contexts)]
    assert all(found.greedy for found in likelihoods(model, requests, batch_size=3))
    for place in range(3):  # one token that is not the likeliest, anywhere
        ids = list(written[2])
        ids[place] = (ids[place] + 1) % 97
        assert not likelihoods(model, [Request(contexts[2], ids)])[0].greedy


def test_requests_that_share_their_text_share_a_row() -> None:
    model = tiny_model("llama")
    put_on(model, small("lora"), "a")
    requests = [Request([5, 6], [last]) for last in (7, 8, 9)] + [Request([5], [6, 9]), Request([5, 6], [9])]
    routes = ["a", "a", "a", "a", None]
    expected = [log_likelihoods(model, [r], routes=[route])[0] for r, route in zip(requests, routes, strict=True)]
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, __, inputs: rows.append(len(inputs["input_ids"])), with_kwargs=True)
    done: list[int] = []
    found = likelihoods(model, requests, routes=routes, on_requests=done.append)
    assert [likelihood.value for likelihood in found] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == len(expected)
    assert (rows, done) == ([2], [5])


def test_batches_are_small_where_logits_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    expected = log_likelihoods(model, REQUESTS)
    sizes: list[int] = []
    monkeypatch.setattr(likelihood, "_MOST_LOGITS", 2 * 4 * 97)  # two rows of the longest continuation
    found = likelihoods(model, REQUESTS, on_requests=sizes.append)
    assert [each.value for each in found] == pytest.approx(expected, abs=1e-5)
    assert sizes == [2, 2]
