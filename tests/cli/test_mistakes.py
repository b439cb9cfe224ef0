"""Every mistake at the command line: one message, exit code 2, no traceback, nothing written."""

from pathlib import Path

import pytest

from commands import command

CASES = {
    "unknown method": (["run", "--set", "adapter.method=lorra"], "nearest: lora"),
    "unknown field": (["run", "--set", "train.epoch=3"], "nearest: epochs"),
    "field of another section": (["run", "--set", "train.dtype=float32"], "nearest: model.dtype"),
    "field of no section": (["run", "--set", "train.seed=3"], "nearest: seed"),
    "wrong type": (["run", "--set", "train.epochs=many"], "epochs"),
    "negative size": (["run", "--set", "adapter.rank=-4"], "greater than 0"),
    "unknown site": (["run", "--set", "adapter.sites=[attn.qq]"], "nearest: attn.q"),
    "unknown layers": (["run", "--set", "adapter.layers=lasst:2"], "last:8"),
    "missing config": (["run", "configs/nowhere.yaml"], "no configuration file"),
    "missing data": (["run", "--set", "data.train=nowhere.json"], "nowhere.json"),
    "no size": (["run", "--set", "evaluate.size=null"], "size"),
    "boolean size": (["run", "--set", "adapter.rank=true"], "integer"),
    "rate of no method": (["run", "--set", "train.learning_rate={lroa: 1e-3}"], "nearest: lora"),
    "site the model lacks": (["run", "--set", "adapter.sites=[attn.qkv]"], "sites: [attn.q]"),
    "layer the model lacks": (["run", "--set", "adapter.layers=99"], "0-29"),
    "unknown base": (["run", "--set", "model.source=./nope"], "nope"),
    "huge seed": (["run", "--set", "seed=99999999999999999999999"], "seed"),
    "unknown template": (["run", "--set", "data.template=alpacca"], "nearest: alpaca"),
    "unknown model": (["sites", "smollm2-135m-instrukt"], "smollm2-135m-instruct"),
    "no assignment": (["run", "--set", "train"], "--set section.field=value"),
    "unknown method field": (["sites", "smollm2-135m-instruct", "-m", "lora", "--set", "rang=3"], "nearest: rank"),
    "layer out of range": (["sites", "smollm2-135m-instruct", "-m", "lora", "--set", "layers=30"], "0-29"),
    "methods": (["methods", "prefixx"], "nearest: prefix"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_gets_one_readable_message(case: str, tmp_path: Path) -> None:
    arguments, said = CASES[case]
    code, error = command(tmp_path, *arguments)
    assert code == 2, error
    assert said in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_empty_and_malformed_data_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "rows.jsonl").write_text('{"instruction": "1 + 1?"}\n{"instruction": 2, "output": "2"}\n')
    for name, said in (("empty.json", "empty"), ("rows.jsonl", "output")):
        code, error = command(tmp_path, "train", "--set", f"data.train={name}", "--set", "data.size=null")
        assert (code, "Traceback" in error) == (2, False), error
        assert said in error
        assert "loading" not in error
