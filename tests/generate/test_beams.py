import torch

import llm_adapters as la
from llm_adapters.generate import beam_search
from tiny import randomise, tiny_model

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13], [14], [15, 16, 17, 18], [19, 20]]
LIMITS = [6, 9, 6, 9, 3]


def test_batches_of_mixed_adapters_and_limits_give_what_each_prompt_gives_alone() -> None:
    model = tiny_model("llama")
    for name in ("lora", "prefix"):
        randomise(la.attach(model, la.method(name), name))
    model.generation_config.repetition_penalty = 5.0  # a habit of the model that the comparison must not take over
    routes = ["lora", None, "prefix", "lora", None]
    stops = {3, 9, 40}
    found = list(beam_search(
        model, PROMPTS, beams=4, max_new_tokens=LIMITS, stop_ids=stops, batch_size=3, routes=routes
    ))  # fmt: skip
    assert sorted(c.prompt for c in found) == list(range(len(PROMPTS)))
    for completion in found:
        i = completion.prompt
        ids = torch.tensor([PROMPTS[i]])
        with la.route(model, [routes[i]], expand=4):
            alone = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), num_beams=4, do_sample=False, pad_token_id=0,
                eos_token_id=sorted(stops), max_new_tokens=LIMITS[i], repetition_penalty=1.0,
            )[0, ids.shape[1] :].tolist()  # fmt: skip
        stopped = any(token in stops for token in alone)
        end = next((n for n, token in enumerate(alone) if token in stops), len(alone))
        assert (completion.ids, completion.stopped) == (alone[:end], stopped)
