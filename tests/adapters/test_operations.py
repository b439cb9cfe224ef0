"""Operations on attached models: several adapters, compositions, routes, files, and what each refuses in what words."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.attach import (
    attach,
    attached,
    detach,
    disable,
    enable,
    engine_of,
    rename,
    route,
)
from llm_adapters.adapters.merge import merge, unmerge
from llm_adapters.adapters.method import Method, method, methods, parse_method
from llm_adapters.errors import AdapterError, MethodError, OutputError, RouteError, SiteError, UserError
from tiny import Letters, enable_checkpointing, gap, logits, randomise, small, tiny_model, token_ids

IDS = token_ids(3, 6)


def put_on(model: nn.Module, recipe: Method | list[Method], name: str, seed: int = 1) -> Adapter:
    """A randomised adapter."""
    return randomise(attach(model, recipe, name, tokenizer=Letters()), seed=seed)


def two(family: str = "llama", first: str = "lora", second: str = "series") -> tuple[nn.Module, Adapter, Adapter]:
    """A model with the adapters a and b."""
    model = tiny_model(family)
    return model, put_on(model, small(first), "a"), put_on(model, small(second), "b", seed=2)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that attaching may change."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    flags = {key: p.requires_grad for key, p in model.named_parameters()}
    return {"hooks": hooks, "flags": flags, "modules": [name for name, _ in model.named_modules()]}


# -- several adapters -------------------------------------------------------------------------------


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


def test_enable_and_disable_by_name_and_all() -> None:
    model, *_ = two()
    both = logits(model, IDS)
    only = {}
    for name, other in (("a", "b"), ("b", "a")):
        disable(model, other)
        only[name] = logits(model, IDS)
        with route(model, name):
            assert torch.equal(logits(model, IDS), only[name])
        enable(model, other)
    assert gap(only["a"], only["b"]) > 1e-2
    disable(model)
    assert torch.equal(logits(model, IDS), logits(tiny_model("llama"), IDS))
    enable(model)
    assert gap(logits(model, IDS), both) < 1e-6
    with pytest.raises(AdapterError, match="no adapter 'c' is attached"):
        disable(model, "c")


def test_rename_keeps_everything_but_the_name(tmp_path: Path) -> None:
    model, a, _ = two()
    before, keys = logits(model, IDS), list(attached(model))
    disable(model, "b")
    rename(model, "a", "first")
    rename(model, "b", "second")
    assert keys == ["a", "b"]
    assert list(attached(model)) == ["first", "second"]
    assert attached(model)["first"] is a
    with route(model, [["first", "second"]]):
        assert torch.equal(logits(model, IDS), before)
    assert {key.split(".")[1] for key in model.state_dict() if key.startswith("llm_adapters.")} == {"first", "second"}
    assert json.loads((a.save(tmp_path / "x") / "adapter.json").read_text())["name"] == "first"
    with route(model, "first"):
        expected = logits(model, IDS)
    assert torch.equal(logits(model, IDS), expected)  # the second still rests
    rename(model, "first", "first")
    with pytest.raises(RouteError, match="'a', which is not attached"), route(model, "a"):
        pass


def test_rename_of_a_merged_adapter() -> None:
    model, *_ = two()
    weight = model.model.layers[0].mlp.down_proj.weight
    before = weight.clone()
    merge(model, "a")
    rename(model, "a", "other")
    with pytest.raises(AdapterError, match="'other' is merged"):
        disable(model, "other")
    unmerge(model, "other")
    assert torch.equal(weight, before)


def test_detach_one_of_two_keeps_the_other() -> None:
    model, *_ = two()
    disable(model, "a")
    only_b = logits(model, IDS)
    detach(model, "a")
    assert torch.equal(logits(model, IDS), only_b)
    assert not any(p.requires_grad for key, p in model.named_parameters() if not key.startswith("llm_adapters."))
    detach(model, "b")
    assert state_of(model) == state_of(tiny_model("llama"))
    assert attached(model) == {}


@pytest.mark.parametrize("name", ["", "a.b", "-a", "ä", "train", "training", "engine", "keys", "a b"])
def test_names_that_cannot_be(name: str) -> None:
    model = tiny_model("llama")
    with pytest.raises(AdapterError, match="cannot be an adapter's name"):
        attach(model, small("lora"), name)
    assert state_of(model) == state_of(tiny_model("llama"))
    put_on(model, small("lora"), "a")
    with pytest.raises(AdapterError, match="cannot be an adapter's name"):
        rename(model, "a", name)


def test_name_clashes() -> None:
    model, *_ = two()
    before = logits(model, IDS)
    with pytest.raises(AdapterError, match=r"an adapter 'a' is attached already\n.*detach\(model, 'a'\)"):
        attach(model, small("prefix"), "a")
    with pytest.raises(AdapterError, match="an adapter 'b' is attached already"):
        rename(model, "a", "b")
    assert torch.equal(logits(model, IDS), before)


def test_nothing_attached() -> None:
    model = tiny_model("llama")
    for operation in (detach, enable, disable):
        with pytest.raises(AdapterError, match="no adapter is attached to this model"):
            operation(model)
    with pytest.raises(AdapterError, match="attach takes a method"):
        attach(model, [])
    assert state_of(model) == state_of(tiny_model("llama"))


# -- compositions -----------------------------------------------------------------------------------


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


# -- routes -----------------------------------------------------------------------------------------


def test_route_errors() -> None:
    model, *_ = two()
    cases: list[tuple[Any, str]] = [
        ("maths", r"adapter 'maths', which is not attached\n  allowed: a, b, None"),
        (["a", "bb"], r"(?s)adapter 'bb', which is not attached.*mend:    route 'b'"),
        ([], "the route is empty"),
        ([["a", "a"], None], r"names an adapter twice: \['a', 'a'\]"),
        ([5], "a row of the route is 5"),
    ]
    for rows, words in cases:
        with pytest.raises(RouteError, match=words), route(model, rows):
            pass
    assert engine_of(model).route is None


def test_route_that_does_not_fit_the_batch() -> None:
    model, *_ = two()
    before = logits(model, IDS)
    for rows in (["a", "b"], ["a"] * 6):
        with route(model, rows), pytest.raises(RouteError, match=f"the route has {len(rows)} rows, the batch 3"):
            logits(model, IDS)
    assert torch.equal(logits(model, IDS), before)
    with route(model, ["a", "b"], expand=2):  # two prompts, each expanded to two rows
        expanded = logits(model, IDS[[0, 1, 1, 2]])
    with route(model, ["a", "a", "b", "b"]):
        assert torch.equal(logits(model, IDS[[0, 1, 1, 2]]), expanded)


def test_routes_nest_and_end() -> None:
    model, *_ = two()
    with route(model, "a"):
        a = logits(model, IDS)
        with route(model, "b"):
            b = logits(model, IDS)
        assert torch.equal(logits(model, IDS), a)
        with pytest.raises(RouteError, match="adapter 'a' is in the route in force"):
            detach(model, "a")
        with pytest.raises(RouteError, match="adapter 'a' is in the route in force"):
            rename(model, "a", "c")
    assert gap(a, b) > 1e-2
    assert gap(logits(model, IDS), a) > 1e-2
    with pytest.raises(ZeroDivisionError), route(model, "a"):
        _ = 1 / 0
    assert engine_of(model).route is None


def test_a_failed_forward_leaves_nothing_behind() -> None:
    model, *_ = two(first="prefix")
    before = logits(model, IDS)
    with pytest.raises(IndexError):
        model(torch.tensor([[500]]))
    assert engine_of(model).current is None
    assert torch.equal(logits(model, IDS), before)


# -- merging ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "bloom", "phi3"])
def test_merge_into_fused_and_transposed_weights(family: str) -> None:
    model = tiny_model(family)
    adapter = put_on(model, small("lora"), "a")
    active = logits(model, IDS)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    merge(model, "a")
    disable_hooks = [placed.site.path for placed in adapter.placed()]
    assert all(not torch.equal(model.get_submodule(path).weight, weights[f"{path}.weight"]) for path in disable_hooks)
    assert gap(logits(model, IDS), active) < 1e-5
    unmerge(model, "a")
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_merge_takes_any_linear_map_beside_linears() -> None:
    model = tiny_model("llama")
    put_on(model, small("parallel", nonlinearity="identity", learned_scale=True), "a")
    active = logits(model, IDS)
    merge(model, "a")
    assert gap(logits(model, IDS), active) < 1e-5
    model = tiny_model("llama")
    for recipe in (small("parallel", nonlinearity="identity", sites=["ffn"]), small("lora", sites=["ffn", "attn.q"])):
        put_on(model, recipe, recipe.name())
        with pytest.raises(AdapterError, match="not a linear map beside linears"):
            merge(model, recipe.name())


def test_merge_order_and_refusals() -> None:
    model, *_ = two(second="lora")
    both = logits(model, IDS)
    bare = tiny_model("llama").state_dict()
    with pytest.raises(AdapterError, match="no adapter 'c' is attached"):
        merge(model, "c")
    disable(model, "a")
    with pytest.raises(AdapterError, match="'a' is disabled"):
        merge(model, "a")
    enable(model, "a")
    merge(model, "a")
    assert gap(logits(model, IDS), both) < 1e-5
    merge(model, "b")
    assert gap(logits(model, IDS), both) < 1e-5
    for refused, words in (
        (lambda: merge(model, "a"), "'a' is merged already"),
        (lambda: unmerge(model, "a"), "'b' was merged after 'a'"),
        (lambda: disable(model, "a"), "'a' is merged into the base"),
    ):
        with pytest.raises(AdapterError, match=words):
            refused()
    with pytest.raises(AdapterError, match="so no row can go round it"), route(model, [["a", "b"], None, "a"]):
        pass
    unmerge(model, "b")
    unmerge(model, "a")
    with pytest.raises(AdapterError, match="'a' is not merged"):
        unmerge(model, "a")
    assert all(torch.equal(model.state_dict()[key], value) for key, value in bare.items())


# -- files ------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved LoRA of the tiny llama."""
    return put_on(tiny_model("llama"), small("lora"), "a").save(tmp_path / "saved")


def refused(saved: Path, words: str, model: nn.Module | None = None, **options: Any) -> None:
    """Loading fails in these words, and leaves the model as it was."""
    target = tiny_model("llama") if model is None else model
    before = state_of(target)
    with pytest.raises(AdapterError, match=words):
        attach(target, saved, "b", **options)
    assert state_of(target) == before


def test_other_bases_are_refused(saved: Path) -> None:
    refused(saved, r"(?s)another base:\n  model_type: trained on 'llama', this model has 'qwen3'", tiny_model("qwen3"))
    refused(saved, "width: trained on 32, this model has 64", tiny_model("llama", hidden_size=64))
    refused(saved, "layers: trained on 2, this model has 3", tiny_model("llama", num_hidden_layers=3))
    refused(saved, "vocabulary: trained on 97, this model has 80", tiny_model("llama", vocab_size=80))
    both = tiny_model("gpt2", hidden_size=64)
    refused(saved, r"(?s)model_type: .*width: ", both, allow_other_base=True)
    other = tiny_model("llama", seed=1)
    refused(
        saved, r"(?s)other weights of this architecture:\n  weights: \d+ of the sampled.*allow_other_base=True", other
    )
    adapter = attach(other, saved, "b", allow_other_base=True)
    assert torch.equal(
        adapter.state_dict()["lora.0.attn_q.A"], load_file(saved / "adapter.safetensors")["lora.0.attn_q.A"]
    )


def test_the_same_base_in_another_dtype_or_with_adapters_is_the_same(saved: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert attach(tiny_model("llama").to(dtype), saved, "b").count() > 0
    model = tiny_model("llama")
    put_on(model, small("lora"), "other")
    assert attach(model, saved, "b").count() > 0


def test_a_base_with_something_merged_into_it_is_another_base(saved: Path) -> None:
    model = tiny_model("llama")
    put_on(model, small("lora"), "other")
    merge(model, "other")
    with pytest.raises(AdapterError, match="other weights"):
        attach(model, saved, "b")
    unmerge(model, "other")
    assert attach(model, saved, "b").count() > 0


def test_a_recipe_changed_by_hand_is_refused(saved: Path) -> None:
    rewritten(saved, lambda record: record["methods"][0].update(alpha=160.0), signed=False)
    refused(saved, "changed by hand")


def test_merged_adapters_leave_in_any_order_and_can_stay_in_the_weights() -> None:
    model, ids = tiny_model("llama"), token_ids(2, 5)
    before = logits(model, ids)
    for name in ("a", "b", "c"):
        put_on(model, small("lora"), name)
    merged = logits(model, ids)
    merge(model, "b"), merge(model, "a"), merge(model, "c")
    detach(model)
    assert torch.equal(logits(model, ids), before)
    put_on(model, small("lora"), "a"), put_on(model, small("lora"), "b"), put_on(model, small("lora"), "c")
    for name in ("a", "b", "c"):
        merge(model, name)
    detach(model, keep_merged=True)
    assert not any(key.startswith("llm_adapters") for key in model.state_dict())
    assert gap(logits(model, ids), merged) < 1e-5


def test_a_copied_adapter_shares_its_base() -> None:
    model = tiny_model("llama")
    adapter = put_on(model, small("lora"), "a")
    twin = copy.deepcopy(adapter)
    assert twin.base.model is model
    assert next(twin.placed()).site is next(adapter.placed()).site
    assert next(twin.parameters()) is not next(adapter.parameters())


def test_a_row_without_a_prefix_keeps_the_positions_of_the_base() -> None:
    model = tiny_model("gpt2")
    put_on(model, small("prefix"), "a")
    ids, mask = token_ids(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    with route(model, None):
        bare = logits(model, ids, attention_mask=mask)
    with route(model, [None, "a"]):
        mixed = logits(model, ids, attention_mask=mask)
    assert gap(mixed[0, 2:], bare[0, 2:]) < 1e-5
    assert gap(mixed[1], bare[1]) > 1e-3


def test_a_base_fine_tuned_in_full_is_another_base(saved: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    refused(saved, "other weights", model)


def test_truncated_and_changed_tensors(saved: Path) -> None:
    tensors, data = saved / "adapter.safetensors", (saved / "adapter.safetensors").read_bytes()
    tensors.write_bytes(data[:-10])
    refused(saved, "truncated or was changed: its SHA-256")
    tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(saved, "truncated or was changed")
    tensors.write_bytes(b"")
    refused(saved, "truncated or was changed")
    tensors.unlink()
    refused(saved, r"adapter.safetensors' is missing\n  mend: ")
    tensors.write_bytes(data)
    attach(tiny_model("llama"), saved, "b")


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any], *, signed: bool = True) -> None:
    """Change ``adapter.json``; ``signed`` states the digest of what is then said, as a forger would."""
    path = folder / "adapter.json"
    record = json.loads(path.read_text())
    stated = record["sha256"]
    change(record)
    if signed and record.get("sha256") == stated:
        said = {key: value for key, value in record.items() if key != "sha256"}
        record["sha256"] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(record))


def test_tensors_that_are_not_the_recipe(saved: Path) -> None:
    good = (saved / "adapter.json").read_text()
    rewritten(saved, lambda record: record["methods"][0].update(rank=5))
    refused(saved, r"(?s)does not hold the parameters that 'adapter.json' describes: .*size mismatch")
    rewritten(saved, lambda record: record["methods"][0].update(rank=3, sites=["attn.q"]))
    refused(saved, r"(?s)does not hold the parameters.*Unexpected key")
    (saved / "adapter.json").write_text(good)
    for state in ({"other": torch.zeros(2)}, {}):
        save_file(state, saved / "adapter.safetensors")
        digest = hashlib.sha256((saved / "adapter.safetensors").read_bytes()).hexdigest()
        rewritten(saved, lambda record, digest=digest: record.update(tensors_sha256=digest))
        refused(saved, "does not hold the parameters")
    (saved / "adapter.safetensors").write_bytes(b"\x80\x04not safetensors")
    digest = hashlib.sha256(b"\x80\x04not safetensors").hexdigest()
    rewritten(saved, lambda record: record.update(tensors_sha256=digest))
    refused(saved, "does not hold the parameters")


def test_damaged_descriptions(saved: Path, tmp_path: Path) -> None:
    good = (saved / "adapter.json").read_text()
    (saved / "adapter.json").write_text(good[:-20])
    refused(saved, "adapter.json' is damaged")
    (saved / "adapter.json").write_bytes(b"\xff\xfe\x00")
    refused(saved, "adapter.json' is damaged")
    (saved / "adapter.json").write_text("[]")
    refused(saved, "lacks base, format, methods, sha256, tensors_sha256")
    for change, words in (
        (lambda record: record.pop("sha256"), "lacks sha256"),
        (lambda record: record.update(format=2), r"has format 2\n  allowed: 1"),
        (lambda record: record.update(base=None), "'base'"),
        (lambda record: record.update(methods=[]), "'methods'"),
        (lambda record: record.update(methods=["lora"]), "'methods'"),
        (lambda record: record.update(sha256=5), "changed by hand"),
        (lambda record: record.update(tensors_sha256=5), "truncated or was changed"),
    ):
        (saved / "adapter.json").write_text(good)
        rewritten(saved, change)
        refused(saved, words)
    (saved / "adapter.json").write_text(good)
    refused(tmp_path / "save", r"holds no adapter: 'adapter.json' is missing\n  mend: .*did you mean '.*/saved'\?")
    refused(tmp_path / "absent" / "x", "holds no adapter")


def test_recipes_in_files_are_checked_like_any_other(saved: Path) -> None:
    rewritten(saved, lambda record: record["methods"][0].update(method="lorra"))
    with pytest.raises(MethodError, match="unknown method 'lorra'"):
        attach(tiny_model("llama"), saved, "b")
    rewritten(saved, lambda record: record["methods"][0].update(method="lora", rank=-1))
    with pytest.raises(MethodError, match="field 'rank' is -1"):
        attach(tiny_model("llama"), saved, "b")


def listing(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_saving_does_not_overwrite_unasked(tmp_path: Path) -> None:
    adapter = put_on(tiny_model("llama"), small("lora"), "a")
    adapter.save(tmp_path / "x")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = listing(tmp_path)
    randomise(adapter, seed=7)
    for folder in ("x", "notes", "file"):
        with pytest.raises(OutputError, match=rf"{folder}' exists\n  mend: .*overwrite=True"):
            adapter.save(tmp_path / folder)
    assert listing(tmp_path) == before
    adapter.save(tmp_path / "x", overwrite=True)
    adapter.save(tmp_path / "notes", overwrite=True)
    after = listing(tmp_path)
    assert after["x/adapter.safetensors"] != before["x/adapter.safetensors"]
    assert after["notes/mine.txt"] == b"mine"
    assert sorted(after) == sorted([*before, "notes/adapter.json", "notes/adapter.safetensors"])
    (tmp_path / "empty").mkdir()
    assert adapter.save(tmp_path / "empty") == tmp_path / "empty"
    assert adapter.save(tmp_path / "new" / "deep").is_dir()
    assert not list(tmp_path.rglob(".*"))  # no temporary folder is left


def test_a_save_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = put_on(tiny_model("llama"), small("lora"), "a")
    adapter.save(tmp_path / "x")
    before = listing(tmp_path)
    randomise(adapter, seed=7)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="No space"):
        adapter.save(tmp_path / "x", overwrite=True)
    assert listing(tmp_path) == before


def test_a_prefix_from_text_is_loaded_without_a_tokenizer(tmp_path: Path) -> None:
    model = tiny_model("llama")
    recipe = method("prefix", init="text", init_text="solve", tokens=5)
    saved = attach(model, recipe, "a", tokenizer=Letters()).save(tmp_path / "x")
    expected = logits(model, IDS)
    again = tiny_model("llama")
    assert attach(again, saved, "b").methods == (recipe,)
    assert torch.equal(logits(again, IDS), expected)
    with pytest.raises(MethodError, match="initialising from text needs the tokenizer"):
        attach(again, recipe, "c")


# -- recipes ----------------------------------------------------------------------------------------


def test_unknown_method_and_its_nearest() -> None:
    with pytest.raises(MethodError) as caught:
        method("prefx")
    assert caught.value.nearest == "prefix"
    assert caught.value.allowed == list(methods())
    with pytest.raises(MethodError, match="needs the field 'method'"):
        parse_method({"rank": 8})
    assert parse_method(method("lora", rank=4).recipe()) == method("lora", rank=4)


def test_all_mistakes_of_a_method_at_once() -> None:
    with pytest.raises(MethodError) as caught:
        method("lora", rnak=8, rank=-2, alpha="big", dropout=1.0, sites=["atn.q"], layers="frist:2")
    words = str(caught.value)
    assert "method 'lora': 6 mistakes" in words
    assert (
        "unknown field 'rnak' (given 8); allowed: sites, layers, rank, alpha, dropout, rslora; nearest: rank" in words
    )
    assert "field 'rank' is -2" in words
    assert "field 'alpha' is 'big'" in words
    assert "field 'dropout' is 1.0" in words
    assert "unknown site 'atn.q'" in words
    assert "nearest: attn.q" in words
    assert "layers 'frist:2' cannot be read" in words


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("lora", {"rank": 0}, "field 'rank' is 0"),
        ("lora", {"rank": 2.5}, "field 'rank' is 2.5"),
        ("lora", {"alpha": float("inf")}, "field 'alpha' is inf"),
        ("lora", {"sites": []}, "sites is empty"),
        ("lora", {"sites": 5}, "field 'sites' is 5"),
        ("lora", {"layers": []}, "layers is empty"),
        ("lora", {"layers": True}, "layers True cannot be read"),
        ("lora", {"layers": "5-3"}, "layers '5-3' cannot be read"),
        ("lora", {"layers": "last:0"}, "layers 'last:0' cannot be read"),
        ("series", {"nonlinearity": "swish"}, "field 'nonlinearity' is 'swish'"),
        ("series", {"bottleneck": -1}, "field 'bottleneck' is -1"),
        ("prefix", {"tokens": 0}, "field 'tokens' is 0"),
        ("prefix", {"init": "text"}, "init 'text' and init_text go together"),
        ("prefix", {"init_text": "x"}, "init 'text' and init_text go together"),
        ("prompt", {"init": "text"}, "init 'text' and init_text go together"),
        (
            "prefix",
            {"init": "text", "init_text": "x", "reparametrization": 4},
            "a reparametrized prefix starts at random, not from text",
        ),
        ("p_tuning", {"encoder": "gru"}, "field 'encoder' is 'gru'"),
    ],
)
def test_one_mistake(name: str, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(MethodError) as caught:
        method(name, **fields)
    assert str(caught.value).startswith(f"method '{name}': ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        (
            "bloom",
            {"sites": ["attn.q"]},
            r"(?s)no site 'attn.q': .* fused into one site, 'attn.qkv'.*sites: \[attn.qkv\]",
        ),
        ("phi3", {"sites": ["ffn.up"]}, r"(?s)fused into one site, 'ffn.gate_up'.*sites: \[ffn.gate_up\]"),
        ("bloom", {"sites": ["ffn.gate"]}, r"(?s)its feed-forward has no gate.*sites: \[ffn.up\]"),
        ("mixtral", {"sites": ["ffn.up"]}, "its feed-forward is a mixture of experts without single linears"),
        ("llama", {"sites": ["attn.qkv"]}, r"(?s)\(llama\) has no site 'attn.qkv'.*allowed: attn.q, attn.k, .*embed"),
        ("llama", {"sites": ["embed"]}, "the input of 'embed' is token ids"),
        ("llama", {"layers": [0, 2]}, r"(?s)the model has 2 layers, so there is no layer 2.*allowed: 0-1, last:2"),
        ("llama", {"layers": "1-3"}, "there is no layer 2, 3"),
        ("llama", {"layers": "last:3"}, "there is no layer -3"),
        ("llama", {"layers": -3}, "there is no layer -3"),
    ],
)
def test_sites_that_the_model_lacks(family: str, fields: dict[str, Any], words: str) -> None:
    model = tiny_model(family)
    before = state_of(model)
    with pytest.raises((SiteError, MethodError), match=words):
        attach(model, small("lora", **fields))
    assert state_of(model) == before


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [("all", [0, 1, 2, 3]), (1, [1]), (-1, [3]), ([3, 0, 3], [0, 3]), ("1-2", [1, 2]), ("2", [2]), ("last:2", [2, 3])],
)
def test_layers_that_are_chosen(layers: Any, chosen: list[int]) -> None:
    model = tiny_model("llama", num_hidden_layers=4)
    adapter = attach(model, small("lora", sites=["attn.q|attn.qkv", "ffn.gate_up|ffn.down"], layers=layers))
    assert [(p.site.layer, p.site.name) for p in adapter.placed()] == [
        (layer, name) for layer in chosen for name in ("attn.q", "ffn.down")
    ]


def test_sets_of_sites() -> None:
    adapter = attach(tiny_model("bloom"), small("lora", sites=["ffn.*", "attn.*"], layers=0))
    assert [p.site.name for p in adapter.placed()] == ["ffn.up", "ffn.down", "attn.qkv", "attn.o"]
    adapter = attach(tiny_model("llama"), small("series", sites=["embed", "block"], layers=1))
    assert [(p.site.name, p.site.layer) for p in adapter.placed()] == [("embed", None), ("block", 1)]


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("falcon:multi_query", "prefix", {"alibi": True}, "with alibi=True"),
    ("minimax", "prefix", {"num_local_experts": 2}, "no key–value cache that a prefix could join"),
    ("openai-gpt", "prompt", {"num_key_value_heads": None}, "no layer of this openai-gpt model keeps keys and values"),
    (
        "gemma3n_text",
        "prompt",
        {
            "num_hidden_layers": 4,
            "num_kv_shared_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "vocab_size_per_layer_input": 97,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 4,
            "activation_sparsity_pattern": [0.0] * 4,
            "intermediate_size": [48] * 4,
        },
        r"layers \[2, 3\] of this gemma3n_text model keep no keys and values",
    ),
    (
        "lfm2",
        "prompt",
        {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
        r"layers \[0\] of this lfm2 model keep no keys and values",
    ),
]


@pytest.mark.parametrize(("family", "name", "config", "words"), REFUSED, ids=[case[0] for case in REFUSED])
def test_bases_that_virtual_tokens_cannot_join(family: str, name: str, config: dict[str, Any], words: str) -> None:
    model = tiny_model(family, **config)
    before = state_of(model)
    with pytest.raises(MethodError, match=words):
        attach(model, small(name))
    assert state_of(model) == before
    put_on(model, small("lora"), "a")  # what it can be mended with
    assert gap(logits(model, IDS), logits(tiny_model(family, **config), IDS)) > 1e-3


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_attention_without_masks_is_refused(name: str) -> None:
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(MethodError, match="do not run with attn_implementation='flash_attention_2'"):
        attach(model, small(name))
    assert state_of(model) == state_of(tiny_model("llama"))
    model.config._attn_implementation = "sdpa"
    attach(model, small(name))
    model.config._attn_implementation = "flash_attention_2"  # changed afterwards
    with pytest.raises(MethodError, match="do not run with attn_implementation='flash_attention_2'"):
        logits(model, IDS)


# -- copies, dtypes, trainers, compilers ------------------------------------------------------------


@pytest.mark.parametrize("first", ["lora", "prefix", "prompt"])
def test_a_deep_copy_is_independent(first: str) -> None:
    model, a, _ = two(first=first)
    both = logits(model, IDS)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, IDS), both)
    assert attached(twin)["a"] is not a
    randomise(attached(twin)["a"], seed=9)
    changed = logits(twin, IDS)
    assert gap(changed, both) > 1e-2
    with route(twin, "b"):
        assert torch.equal(logits(model, IDS), both)
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is None for p in attached(twin)["a"].parameters())
    detach(model)
    assert torch.equal(logits(twin, IDS), changed)
    detach(twin)
    assert torch.equal(logits(twin, IDS), logits(tiny_model("llama"), IDS))
    assert state_of(twin) == state_of(tiny_model("llama"))


@pytest.mark.parametrize("name", methods())
def test_a_half_precision_base_trains_full_precision_adapters(name: str, tmp_path: Path) -> None:
    model = tiny_model("llama").bfloat16()
    base = {key: value.clone() for key, value in model.state_dict().items()}
    adapter = put_on(model, small(name), "a")
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=3e-2)
    losses = []
    for _ in range(6):
        out = model(IDS, labels=IDS)
        losses.append(float(out.loss))
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert out.logits.dtype == torch.bfloat16
    assert losses[-1] < losses[0] - 0.1
    assert {p.dtype for p in adapter.parameters()} == {torch.float32}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in base.items())
    put_on(model, small("lora"), "b")
    with route(model, ["a", None, "b"]):
        assert model.generate(IDS, max_new_tokens=2, do_sample=False).shape == (3, 8)
    detach(model, "b")
    saved = adapter.save(tmp_path / "x")
    assert {value.dtype for value in load_file(saved / "adapter.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize("name", methods())
def test_autocast(name: str) -> None:
    model = tiny_model("llama")
    a, _ = put_on(model, small(name), "a"), put_on(model, small("lora"), "b", seed=2)
    for rows in ("a", ["a", "b", None], ["a", None, "a"]):
        with route(model, rows):
            full = logits(model, IDS)
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(IDS, labels=IDS).loss
                half = logits(model, IDS)
        assert gap(half.float(), full) < 0.05 * float(full.abs().max())
        loss.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in a.parameters())


def memorise(model: nn.Module, folder: Path, **options: Any) -> tuple[float, float]:
    """The loss before and after transformers.Trainer has had a few steps on one batch."""
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for row in token_ids(4, 8)]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=12,
        per_device_train_batch_size=4,
        learning_rate=2e-2,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    return before, trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("lora", {}),
        ("lora", {"bf16": True}),
        ("prefix", {"gradient_checkpointing": True}),
        ("houlsby", {"gradient_checkpointing": True, "bf16": True}),
    ],
    ids=["lora", "lora-bf16", "prefix-checkpointing", "houlsby-both"],
)
def test_the_trainer_of_transformers(recipe: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model("llama")
    base = {key: value.clone() for key, value in model.state_dict().items()}
    adapter = attach(model, small(recipe))
    start = {key: value.clone() for key, value in adapter.state_dict().items()}
    before, after = memorise(model, tmp_path, **options)
    assert after < before - 0.2
    assert all(torch.equal(model.state_dict()[key], value) for key, value in base.items())
    assert [key for key, value in adapter.state_dict().items() if torch.equal(value, start[key])] == []


def test_compiled_models_follow_routes() -> None:
    torch._dynamo.reset()
    model = tiny_model("llama", num_hidden_layers=1)
    bare = logits(model, IDS)
    adapter = put_on(model, [small("prefix"), small("lora"), small("series")], "a")
    expected = logits(model, IDS)
    compiled = torch.compile(model, backend="eager")
    compiled(IDS, labels=IDS).loss.backward()
    found = {key: p.grad.clone() for key, p in adapter.named_parameters()}
    adapter.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    assert all(gap(p.grad, found[key]) < 1e-5 for key, p in adapter.named_parameters())
    with route(compiled, ["a", None, "a"]):
        mixed = logits(compiled, IDS)
    assert gap(mixed[[0, 2]], expected[[0, 2]]) < 1e-5
    assert gap(mixed[1], bare[1]) < 1e-5
    detach(compiled)
    assert gap(logits(compiled, IDS), bare) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "prefix"])
def test_compiled_by_inductor(name: str) -> None:
    torch._dynamo.reset()
    model = tiny_model("llama")
    put_on(model, small(name), "a")
    expected = logits(model, IDS)
    assert gap(logits(torch.compile(model), IDS), expected) < 1e-5


def test_checkpointing_that_cannot_work_is_refused() -> None:
    model = tiny_model("llama").train()
    put_on(model, small("lora"), "a")
    enable_checkpointing(model, use_reentrant=True)
    with pytest.raises(UserError, match=r"(?s)use_reentrant=True.*use_reentrant': False"):
        model(IDS, labels=IDS)


def test_dropout_acts_in_training_only() -> None:
    model = tiny_model("llama")
    for name in ("lora", "series"):
        adapter = put_on(model, small(name, dropout=0.5), name)
        assert torch.equal(logits(model, IDS), logits(model, IDS))
        model.train()
        assert adapter.training
        assert gap(logits(model, IDS), logits(model, IDS)) > 1e-2
        model.eval()
        detach(model)


def test_prefixes_follow_a_static_cache() -> None:
    model, *_ = two(first="prefix", second="prompt")
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "disable_compile": True}
    with route(model, ["a", "b", None]):
        dynamic = model.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
        static = model.generate(IDS, attention_mask=torch.ones_like(IDS), cache_implementation="static", **options)
    assert torch.equal(static, dynamic)


def test_decoding_uses_the_prefix_that_filled_the_cache() -> None:
    model = tiny_model("llama")
    adapter = put_on(model, small("p_tuning"), "a")
    calls: list[int] = []
    adapter.p_tuning.register_forward_hook(lambda *_: calls.append(1))
    model.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False)
    assert len(calls) == 1  # once for the prompt, not once a token
    logits(model, IDS)
    assert len(calls) == 2


def test_a_sliding_window_slides_over_the_input_only() -> None:
    model = tiny_model("gemma3_text", sliding_window=4, layer_types=["sliding_attention"] * 2)
    ids = token_ids(1, 12)
    adapter = put_on(model, small("prefix"), "a")
    with torch.no_grad():
        adapter.prefix.values["0"].mul_(5.0)
        far = model(ids).logits
        step = model(ids[:, :8], use_cache=True)
        rest = model(ids[:, 8:], past_key_values=step.past_key_values).logits
    assert gap(rest, far[:, 8:]) < 1e-5
    disable(model)
    assert gap(far[:, -1], logits(model, ids)[:, -1]) > 1e-2  # beyond the window the prefix is still seen


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1) @ v


def test_prefix_attention_is_its_equation() -> None:
    """``Attn(Hi Wq, [Pk; Hi Wk], [Pv; Hi Wv])`` for the last token of gpt2's first layer, which has no rotation."""
    model = tiny_model("gpt2")
    adapter = put_on(model, small("prefix"), "a")
    attention, found = model.transformer.h[0].attn, {}
    attention.c_attn.register_forward_hook(lambda _m, _x, y: found.update(qkv=y))
    attention.c_proj.register_forward_pre_hook(lambda _m, args: found.update(out=args[0]))
    logits(model, IDS)
    q, k, v = (part.view(3, 6, 4, 8).transpose(1, 2) for part in found["qkv"].split(32, dim=-1))
    pk, pv = (
        table["0"].transpose(0, 1).expand(3, -1, -1, -1) for table in (adapter.prefix.keys, adapter.prefix.values)
    )
    heads = softmax_attention(q[:, :, -1:], torch.cat([pk, k], 2), torch.cat([pv, v], 2))
    assert gap(found["out"][:, -1], heads.transpose(1, 2).reshape(3, 32)) < 1e-5
    assert not torch.allclose(heads, F.scaled_dot_product_attention(q[:, :, -1:], k, v), atol=1e-2)


def test_a_method_name_in_place_of_a_method_is_explained() -> None:
    with pytest.raises(AdapterError, match=r'la\.method\("lora"\)'):
        attach(tiny_model("llama"), "lora")


def test_an_attached_model_can_be_pickled(tmp_path: Path) -> None:
    model = tiny_model("llama")
    randomise(attach(model, method("prefix"), "a"))
    ids = token_ids(2, 5)
    expected = logits(model, ids)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(logits(again, ids), expected)
    detach(again)
    assert not torch.equal(logits(again, ids), expected)
    assert torch.equal(logits(model, ids), expected)
