from pathlib import Path

import pytest
import yaml

from llm_adapters.errors import ConfigError
from llm_adapters.runs.run import read_config
from llm_adapters.runs.run_plan import learning_rate


def test_defaults_are_a_complete_run() -> None:
    config = read_config(None)
    assert (config.model.source, config.data.train) == ("smollm2-135m-instruct", "word-problems")
    assert [method.name() for method in config.adapter] == ["lora"]


def test_all_mistakes_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("trian: {}\ntrain: {epochs: -1, batch_sise: 4}\nadapter: {method: lora, rnak: 4, alpha: no}\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    said = str(caught.value)
    for part in ("trian", "nearest: train", "epochs", "nearest: batch_size", "rnak", "nearest: rank", "alpha"):
        assert part in said, part
    assert "Traceback" not in said


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="nearest: lora"):
        read_config(None, ["adapter.method=lorra"])


def test_a_word_that_is_not_allowed_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'linear', 'cosine' or 'constant'; nearest: cosine"):
        read_config(None, ["train.schedule=cosin"])


def test_a_resolved_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = read_config(None, ["adapter=[{method: prefix, tokens: 4}, {method: lora, layers: 'last:2'}]", "seed=3"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert read_config(path) == config


def test_learning_rate_is_the_files_or_the_methods_own_and_the_smallest_of_a_composition() -> None:
    assert learning_rate(read_config(None, ["train.learning_rate=0.5"])) == 0.5
    assert learning_rate(read_config(None, ["adapter.method=prefix"])) == 3e-2
    table = "train.learning_rate={lora: 1e-3, series: 2e-3}"
    assert learning_rate(read_config(None, [table, "adapter.method=series"])) == 2e-3
    assert learning_rate(read_config(None, [table, "adapter=[{method: series}, {method: prefix}]"])) == 2e-3


def test_shipped_configurations_are_valid() -> None:
    configs = Path(__file__).parents[2] / "configs"  # studies are another kind, see test_paper_studies.py
    shipped = sorted(path for path in configs.rglob("*.yaml") if configs / "studies" not in path.parents)
    assert shipped
    for path in shipped:
        read_config(path)
