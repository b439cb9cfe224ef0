import hashlib
import json
import os
from dataclasses import replace

import pytest

from llm_adapters.data.mixtures import load_mixture
from llm_adapters.data.registry import FILES
from llm_adapters.data.registry_table import RECIPES
from llm_adapters.data.sources import load_source
from llm_adapters.errors import DataError

real = pytest.mark.skipif(
    not os.environ.get("LLM_ADAPTERS_DATA"), reason="needs the benchmark files: set LLM_ADAPTERS_DATA"
)


@pytest.mark.parametrize("name", ["math", "commonsense", "math10k", "commonsense170k"])
def test_a_training_mixture_is_never_evaluated_on(name):
    with pytest.raises(DataError, match="training mixture"):
        load_source(name, split="test")


def test_a_recipe_joins_its_parts_and_names_all_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_ADAPTERS_DATA", str(tmp_path))
    monkeypatch.setitem(RECIPES, "math10k", (("gsm8k/train", None), ("mawps/train", None), ("aqua/train", 4)))
    content = json.dumps([{"instruction": f"{n} + 1?", "output": ""} for n in range(9)]).encode()
    for name in ("gsm8k", "mawps", "aqua"):
        small = replace(FILES[f"{name}/train"], rows=9, sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(FILES, small.name, small)
        (tmp_path / name).mkdir()
    (tmp_path / "mawps" / "train.json").write_bytes(content)
    with pytest.raises(DataError, match=r"no gsm8k/train\.json, aqua/train\.json"):
        load_mixture("math10k")
    for name in ("gsm8k", "aqua"):
        (tmp_path / name / "train.json").write_bytes(content)
    rows = load_source("math10k", split="train")
    assert [row.meta["source"] for row in rows] == ["gsm8k"] * 9 + ["mawps"] * 9 + ["aqua"] * 4
    assert len({row.instruction for row in rows[18:]}) == 4


@real
def test_math10k_is_the_questions_of_its_three_parts():
    rows = load_mixture("math10k")
    assert len(rows) == 7473 + 1898 + 1000
    assert rows == load_mixture("math10k")
