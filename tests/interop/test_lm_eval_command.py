import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import llm_adapters as la
from llm_adapters.cli import app
from llm_adapters.errors import AdapterError, MissingExtraError, UserError
from tiny import put_on, small, tiny_model

TASK = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}} ="
doc_to_choice: ["1", "2", "3", "4"]
doc_to_target: answer
"""


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    """A saved base and two adapters of it."""
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base, _ = la.load_model(tmp_path / "base")
    for name in ("lora", "prefix"):
        put_on(base, small(name), name).save(tmp_path / name)
    return tmp_path


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", *(name for name in sys.modules if name.startswith("lm_eval."))):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "llm_adapters.interop.lm_eval", raising=False)
    failure = CliRunner().invoke(app, ["lm-eval", "--tasks", "arc_easy"]).exception
    assert isinstance(failure, MissingExtraError)
    assert failure.mend == "pip install 'llm-adapters[lm-eval]'"


def test_the_harness_makes_the_model_from_its_arguments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = pytest.importorskip("lm_eval.api.registry", reason="lm_eval is not installed")
    from llm_adapters.interop.lm_eval import AdaptersLM

    assert registry.get_model("llm-adapters") is AdaptersLM
    assert registry.get_model("hf").__name__ == "HFLM"  # the harness's own models are still known
    monkeypatch.chdir(folder)  # an adapter records the last part of its base's path
    lora, prefix = str(folder / "lora"), str(folder / "prefix")
    lm = AdaptersLM.create_from_arg_string(
        f"base={folder / 'base'},adapter={lora}", {"batch_size": "5", "device": None}
    )
    assert (lm.route, lm.batch_size, list(la.attached(lm.model))) == (("adapter-1",), 5, ["adapter-1"])
    lm = AdaptersLM.create_from_arg_obj({"adapter": [lora, prefix], "dtype": "float32"})  # the base is on record
    assert lm.route == ("adapter-1", "adapter-2")
    info = lm.get_model_info()
    assert [recipes[0]["method"] for recipes in info["adapters"].values()] == ["lora", "prefix"]
    assert info["base"] == "base"
    assert AdaptersLM.create_from_arg_obj({"base": str(folder / "base")}).route == ()
    with pytest.raises(UserError) as error:
        AdaptersLM.create_from_arg_string("bases=x")
    assert error.value.nearest == "base"
    assert "route" not in error.value.allowed
    with pytest.raises(AdapterError, match="holds no adapter"):
        AdaptersLM.create_from_arg_obj({"adapter": str(folder)})


@pytest.mark.slow  # the harness reads the definitions of all its tasks first
def test_the_command_line_runs_a_task(folder: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    rows = [{"question": f"{i} + 1", "answer": i} for i in range(4)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "sums.yaml").write_text(TASK.format(data=folder / "sums.jsonl"))
    command = [
        sys.executable, "-c", "from llm_adapters.cli import main; main()", "lm-eval",
        "--model", "llm-adapters", "--model_args", f"base={folder / 'base'},adapter={folder / 'lora'}",
        "--tasks", str(folder / "sums.yaml"), "--batch_size", "auto", "--output_path", str(folder / "out.json"),
    ]  # fmt: skip
    own = {**os.environ, "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder, env=own)
    assert done.returncode == 0, done.stderr
    assert "|sums" in done.stdout
    assert "acc_norm" in done.stdout
    (written,) = folder.glob("out*.json")
    results = json.loads(written.read_text())
    assert results["config"]["adapters"]["adapter-1"][0]["method"] == "lora"
    assert results["n-samples"]["sums"]["effective"] == 4
