import os
from types import SimpleNamespace
from typing import Any

import pytest

import llm_adapters as la
from llm_adapters.data.sources import load_source
from llm_adapters.data.templates import get_template
from llm_adapters.errors import RouteError, UserError
from llm_adapters.evaluation.task import get_task
from llm_adapters.generate.likelihood import Request, log_likelihoods
from tiny import put_on, small, tiny_model

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'llm-adapters[lm-eval]'")
from lm_eval.api.task import ConfigurableTask  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from llm_adapters.interop.lm_eval import AdaptersLM  # noqa: E402

METHODS = [None, "lora", "series", "prefix", "prompt"]
ROOM = 60  # tokens, so that some texts below are cut
LONG = "a long text that does not fit into the room that the model is given, so that its beginning is left out"


def instances(*arguments: tuple[Any, ...]) -> list[Any]:
    """Requests as the harness makes them."""
    return [SimpleNamespace(args=each, task_name="test") for each in arguments]


def pair(tokenizer: Any, method: str | None, **options: Any) -> tuple[Any, Any]:
    """The harness's own model and ours on one tiny model, through one adapter or none."""
    model = tiny_model("llama")
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    if method:
        put_on(model, small(method), "a")
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=ROOM)
    return theirs, AdaptersLM(model, tokenizer, route=method and "a", batch_size=3, max_length=ROOM, **options)


@pytest.mark.parametrize("method", METHODS)
def test_likelihoods_are_those_of_the_harness(tokenizer: Any, method: str | None) -> None:
    theirs, ours = pair(tokenizer, method)
    prompts = ("2 + 2 =", "The sky is")
    greedy = [(text, theirs.generate_until(instances((text, {"max_gen_toks": 4})))[0]) for text in prompts]
    requests = instances(
        *greedy, ("", "from nothing"), ("<s>with BOS", " already"), ("space moves ", "over"), (LONG, " end"),
        *((prompts[0], f" {letter}") for letter in "ABCD"),
    )  # fmt: skip
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    found = ours.loglikelihood(requests, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [greedy for _, greedy in found][:3] == [True, True, False]


@pytest.mark.parametrize("method", METHODS)
def test_rolling_likelihoods_are_those_of_the_harness(tokenizer: Any, method: str | None) -> None:
    theirs, ours = pair(tokenizer, method)
    requests = instances((LONG + LONG,), ("short",), (LONG[:ROOM],), ("",))
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests, disable_tqdm=True) == pytest.approx(expected, abs=1e-3)
    assert expected[3] == 0


@pytest.mark.parametrize("method", METHODS)
def test_completions_are_those_of_the_harness(tokenizer: Any, method: str | None) -> None:
    theirs, ours = pair(tokenizer, method)
    prompts = ["2 + 2 =", "The sky is", LONG, "a", "<s>with BOS"]
    whole = theirs.generate_until(instances(*((text, {"max_gen_toks": 20}) for text in prompts)))
    assert ours.generate_until(instances(*((text, {"max_gen_toks": 20}) for text in prompts))) == whole
    first, second, *_ = [text for text in whole if len(text) > 8]
    stops = [first[5:7], second[6]]  # texts that really come
    requests = [(text, {"until": list(stops), "max_gen_toks": 20, "do_sample": False}) for text in prompts]
    requests += [(text, {"until": second[4], "max_new_tokens": 7}) for text in prompts]
    expected = theirs.generate_until(instances(*requests))
    assert ours.generate_until(instances(*requests), disable_tqdm=True) == expected
    assert all(stop not in text for text in expected[:5] for stop in stops)
    assert expected[:5] != whole


def test_the_route_is_what_is_asked(tokenizer: Any) -> None:
    model = tiny_model("llama")
    requests = instances(("2 + 2 =", " 4"), ("", "text"))
    bare = AdaptersLM(model, tokenizer).loglikelihood(requests)
    put_on(model, small("lora"), "a")
    put_on(model, small("series"), "b", seed=2)
    found = {}
    for route in (None, "a", "b", ("a", "b")):
        lm = AdaptersLM(model, tokenizer, route=route)
        found[route] = [value for value, _ in lm.loglikelihood(requests)]
        with la.route(model, [route]):
            expected = HFLM(pretrained=model, tokenizer=tokenizer).loglikelihood(requests)
        assert found[route] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert found[None] == pytest.approx([value for value, _ in bare], abs=1e-6)
    assert len({round(values[0], 3) for values in found.values()}) == 4
    with pytest.raises(RouteError, match="'c', which is not attached"):
        AdaptersLM(model, tokenizer, route="c")


def test_virtual_tokens_take_room(tokenizer: Any) -> None:
    model = tiny_model("gpt2")  # learned positions: one too many would be an error
    put_on(model, small("prefix"), "a")
    assert AdaptersLM(model, tokenizer).max_length == 128
    lm = AdaptersLM(model, tokenizer, route="a")
    assert lm.max_length == 125
    lm.loglikelihood(instances((LONG * 2, " end")))
    lm.loglikelihood_rolling(instances((LONG * 2,)))
    lm.generate_until(instances((LONG * 2, {"max_gen_toks": 3})))


def test_chat_templates_as_in_the_harness(tokenizer: Any) -> None:
    theirs, ours = pair(tokenizer, None)
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is"}]
    for chat, generation in ((turns[:1], True), (turns, False), ([{"role": "system", "content": "x"}, turns[0]], True)):
        assert ours.apply_chat_template(chat, generation) == theirs.apply_chat_template(chat, generation)
    assert ours.apply_chat_template(turns[:1]) == "<s>user: 2 + 2?<s>assistant: "
    assert ours.chat_template(True) == theirs.chat_template(True) == tokenizer.chat_template
    assert ours.tokenizer_name == theirs.tokenizer_name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample": True}, "wants samples"),
        ({"temperature": 0.7}, "wants samples"),
        ({"num_beams": 4}, "'num_beams'"),
        ({"max_gen_toks": ROOM}, "leave 0 of them"),
    ],
)
def test_tasks_that_cannot_be_done_are_refused(tokenizer: Any, options: dict[str, Any], message: str) -> None:
    _, lm = pair(tokenizer, None)
    with pytest.raises(UserError, match=message):
        lm.generate_until(instances(("text", options)))


def test_batch_sizes(tokenizer: Any) -> None:
    model = tiny_model("llama")
    asked = [(7, None), ("7", 3), ("auto", None), ("auto:4", 32)]
    assert [AdaptersLM(model, tokenizer, batch_size=a, max_batch_size=b).batch_size for a, b in asked] == [7, 7, 64, 32]
    with pytest.raises(UserError, match="batch size is 'many'"):
        AdaptersLM(model, tokenizer, batch_size="many")


@pytest.mark.skipif(not os.environ.get("LLM_ADAPTERS_DATA"), reason="needs the benchmark files: set LLM_ADAPTERS_DATA")
@pytest.mark.parametrize("name", ["winogrande", pytest.param("arc_easy", marks=pytest.mark.slow)])
def test_a_benchmark_is_scored_alike(name: str) -> None:
    """Our judgement of our likelihoods, against a task of the harness with the same prompts and options."""
    from datasets import Dataset

    model, tokenizer = la.load_model()
    task, template, examples = get_task(name), get_template("plain"), load_source(name, split="test", size=40)
    options = [task.options(example) for example in examples]
    requests = [
        Request(template.prompt_ids(tokenizer, example), tokenizer.encode(f" {option.text}", add_special_tokens=False))
        for example, choices in zip(examples, options, strict=True)
        for option in choices
    ]
    values = iter(log_likelihoods(model, requests, pad_id=tokenizer.pad_token_id))
    judged = [
        (task.judge_likelihoods(example, scores, normalise=False), task.judge_likelihoods(example, scores))
        for example, choices in zip(examples, options, strict=True)
        for scores in [[next(values) for _ in choices]]
    ]

    documents = [
        {
            "prompt": template.prompt(tokenizer, example),
            "choices": [option.text for option in choices],
            "gold": [option.label for option in choices].index(example.answer),
        }
        for example, choices in zip(examples, options, strict=True)
    ]
    theirs = ConfigurableTask(
        config={
            "task": name, "custom_dataset": lambda **_: {"test": Dataset.from_list(documents)}, "test_split": "test",
            "output_type": "multiple_choice", "doc_to_text": "prompt", "doc_to_choice": "choices",
            "doc_to_target": "gold", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
    )  # fmt: skip
    found = lm_eval.simple_evaluate(AdaptersLM(model, tokenizer), tasks=[theirs], bootstrap_iters=0, log_samples=True)
    rows = sorted(found["samples"][name], key=lambda row: row["doc_id"])
    scores = [[value for value, _ in row["filtered_resps"]] for row in rows]
    for example, choices, given, both in zip(examples, options, scores, judged, strict=True):
        plain = choices[given.index(max(given))].label
        by_length = [value / len(option.text) for value, option in zip(given, choices, strict=True)]
        assert (plain, choices[by_length.index(max(by_length))].label) == tuple(each.answer for each in both), example
    for metric, place in (("acc", 0), ("acc_norm", 1)):
        accuracy = sum(both[place].status == "correct" for both in judged) / len(judged)
        assert found["results"][name][f"{metric},none"] == pytest.approx(accuracy), metric
    assert len({both[0].answer for both in judged}) > 1
