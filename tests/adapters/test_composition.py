"""Several adapters on a model and several methods in an adapter act together, in the stated order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm_adapters.adapters.attach import attach, attached, detach, disable, engine_of, route
from llm_adapters.adapters.merge import merge
from llm_adapters.adapters.method import method
from llm_adapters.errors import AdapterError
from tiny import IDS, Letters, gap, logits, put_on, small, tiny_model, two


def test_enabled_adapters_act_together_in_the_order_of_attaching() -> None:
    model = tiny_model("llama")
    down = model.model.layers[0].mlp.down_proj
    a = put_on(model, small("lora", sites=["ffn.down"], layers=[0]), "a").lora.get_submodule("0.ffn_down")
    b = put_on(model, small("parallel", sites=["ffn.down"], layers=[0]), "b").parallel.get_submodule("0.ffn_down")
    c = put_on(model, small("series", sites=["ffn.down"], layers=[0]), "c").series.get_submodule("0.ffn_down")
    d = put_on(model, small("series_input", sites=["ffn.down"], layers=[0]), "d").series_input.get_submodule(
        "0.ffn_down"
    )
    found = {}
    down.register_forward_pre_hook(lambda _m, args: found.update(x_changed=args[0]))
    down.register_forward_hook(lambda _m, _args, output: found.update(y=output))
    down.register_forward_pre_hook(lambda _m, args: found.update(x=args[0]), prepend=True)
    logits(model, IDS)
    x = found["x"] + torch.tanh(found["x"] @ d.down.T) @ d.up.T  # series-in comes first,
    assert gap(found["x_changed"], x) < 1e-6
    y = x @ down.weight.T + 2.0 * x @ a.A.T @ a.B.T + torch.tanh(x @ b.down.T) @ b.up.T  # then what is parallel,
    y = y + torch.tanh(y @ c.down.T) @ c.up.T  # then series
    assert gap(found["y"], y) < 1e-5


def test_two_loras_add_up() -> None:
    model, a, b = two(second="lora")
    both = logits(model, IDS)
    summed = tiny_model("llama")
    with torch.no_grad():
        for placed in (*a.placed(), *b.placed()):
            summed.get_submodule(placed.site.path).weight.add_(2.0 * placed.form.B @ placed.form.A)
    assert gap(both, logits(summed, IDS)) < 1e-5
    disable(model, "b")
    alone = logits(model, IDS)
    assert gap(both, alone) > 1e-2
    with route(model, [["a", "b"], "a", []]):
        mixed = logits(model, IDS)
    assert gap(mixed[0], both[0]) < 1e-5
    assert gap(mixed[1], alone[1]) < 1e-5
    assert gap(mixed[2], logits(tiny_model("llama"), IDS)[2]) < 1e-5


def test_two_prefixes_stand_one_after_the_other() -> None:
    model = tiny_model("llama")
    for name, text in (("a", "to"), ("b", "day")):
        attach(model, method("prefix", init="text", init_text=text, tokens=len(text)), name, tokenizer=Letters())
    today = attach(tiny_model("llama"), method("prefix", init="text", init_text="today", tokens=5), tokenizer=Letters())
    keys = [attached(model)[name].prefix.keys["0"] for name in "ab"]
    assert gap(keys[0], today.prefix.keys["0"][:2]) < 1e-6
    # The second was read by itself, from position 0; put the keys and values of the whole text in its place.
    with torch.no_grad():
        for table in ("keys", "values"):
            for layer, value in getattr(attached(model)["b"].prefix, table).items():
                value.copy_(getattr(today.prefix, table)[layer][2:])
    assert gap(logits(model, IDS), logits(today.base.model, IDS)) < 1e-5


def test_prefixes_of_different_layers_and_lengths_together() -> None:
    model, masks = tiny_model("llama", num_hidden_layers=3), []
    put_on(model, small("prefix"), "a")
    a = logits(model, IDS)
    put_on(model, [small("prefix", layers=[1], tokens=4), small("prompt", tokens=2)], "b", seed=2)
    both = logits(model, IDS)
    model.model.layers[2].self_attn.register_forward_hook(lambda *_: masks.append(len(engine_of(model).current.masks)))
    with route(model, [["a", "b"], "a", ["a", "b"]]):  # masks are made in another way when rows differ
        mixed = logits(model, IDS)
    assert gap(mixed[[0, 2]], both[[0, 2]]) < 1e-5
    assert gap(mixed[1], a[1]) < 1e-5
    assert gap(both, a) > 1e-2
    # Layers with prefixes of the same lengths share a mask: one of the prompt's own pass over itself is gone by then.
    assert masks[-1] == 2


def test_mam_is_its_parts_and_is_saved_as_one(tmp_path: Path) -> None:
    model = tiny_model("llama")
    adapter = put_on(model, [small("prefix"), small("scaled_parallel")], "mam")
    together = logits(model, IDS)
    parts = tiny_model("llama")
    put_on(parts, small("prefix"), "p").prefix.load_state_dict(adapter.prefix.state_dict())
    put_on(parts, small("scaled_parallel"), "s").scaled_parallel.load_state_dict(adapter.scaled_parallel.state_dict())
    assert torch.equal(logits(parts, IDS), together)
    assert adapter.count() == sum(recipe.count(adapter.base) for recipe in adapter.methods)
    detach(model)
    again = attach(model, adapter.save(tmp_path / "mam"), "again")
    assert [recipe.name() for recipe in again.methods] == ["prefix", "scaled_parallel"]
    assert torch.equal(logits(model, IDS), together)
    with pytest.raises(AdapterError, match="'prefix' is not a linear map"):
        merge(model, "again")


def test_the_same_method_twice(tmp_path: Path) -> None:
    model = tiny_model("llama")
    adapter = put_on(model, [small("series", sites=["attn"]), small("series"), small("lora")], "twice")
    assert [key for key, _ in adapter.named_children()] == ["series", "series_2", "lora"]
    together = logits(model, IDS)
    detach(model)
    attach(model, adapter.save(tmp_path / "twice"), "again")
    assert torch.equal(logits(model, IDS), together)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gptj"])
@pytest.mark.parametrize("second", ["lora", "series"])
def test_other_methods_act_on_virtual_tokens(family: str, second: str) -> None:
    model = tiny_model(family)
    adapter = put_on(model, [small(second), small("prompt")], "both")
    assert adapter.virtual_tokens == 3
    found = logits(model, IDS)
    by_hand = tiny_model(family)
    part = put_on(by_hand, small(second), "alone").get_submodule(second)
    part.load_state_dict(adapter.get_submodule(second).state_dict())
    embedded = by_hand.get_input_embeddings()(IDS)
    joined = torch.cat([adapter.prompt.table.expand(3, -1, -1), embedded], 1)
    assert gap(found, logits(by_hand, inputs_embeds=joined)[:, 3:]) < 1e-5


def test_prompt_behind_a_prefix() -> None:
    model = tiny_model("llama")
    adapter = put_on(model, [small("prompt"), small("prefix", tokens=4)], "both")
    assert adapter.virtual_tokens == 7
    found = logits(model, IDS)
    by_hand = tiny_model("llama")
    put_on(by_hand, small("prefix", tokens=4), "alone").prefix.load_state_dict(adapter.prefix.state_dict())
    joined = torch.cat([adapter.prompt.table.expand(3, -1, -1), by_hand.get_input_embeddings()(IDS)], 1)
    assert gap(found, logits(by_hand, inputs_embeds=joined)[:, 3:]) < 1e-5
    assert gap(found, logits(model, inputs_embeds=by_hand.get_input_embeddings()(IDS))) < 1e-6
