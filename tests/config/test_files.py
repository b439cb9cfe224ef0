import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_adapters.config.files import assign, override, read_yaml
from llm_adapters.errors import ConfigError


def test_overrides_are_read_as_yaml_and_leave_the_original_alone() -> None:
    data = {"train": {"epochs": 3}}
    changed = override(data, ["train.epochs=1.5", "adapter.sites=[attn.q, attn.v]", "train.max_grad_norm=null"])
    assert changed == {"train": {"epochs": 1.5, "max_grad_norm": None}, "adapter": {"sites": ["attn.q", "attn.v"]}}
    assert data == {"train": {"epochs": 3}}


def test_another_method_drops_the_fields_of_the_file_but_keeps_those_set_later() -> None:
    data = {"adapter": {"method": "lora", "rank": 8}}
    assert override(data, ["adapter.method=series", "adapter.bottleneck=32"]) == {
        "adapter": {"method": "series", "bottleneck": 32}
    }
    assert override(data, ["adapter.method=lora"]) == data
    reordered = override(data, ["adapter.bottleneck=32", "adapter.method=series"])
    assert reordered == {"adapter": {"method": "series", "bottleneck": 32}}
    assert override({"adapter": {"rank": 8}}, ["adapter.method=series"]) == {"adapter": {"method": "series"}}


@pytest.mark.parametrize("wrong", ["train.epochs", "=3", "train..epochs=3", "name.first=x", "a=[1"])
def test_what_is_no_assignment_is_refused_with_the_text_given(wrong: str) -> None:
    with pytest.raises(ConfigError, match="--set") as caught:
        override({"name": "run"}, [wrong])
    assert wrong in str(caught.value)


@given(st.text())
def test_no_text_after_set_crashes(text: str) -> None:
    with contextlib.suppress(ConfigError):
        override({"train": {"epochs": 3}}, [text])


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("name: x\n")
    with pytest.raises(ConfigError, match=r"quickstart\.yaml"):
        read_yaml(tmp_path / "quikstart.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [1", "YAML"), ("a: 1\na: 2\n", "named twice: a"), ("- 1\n", "list"), ("just words", "str")],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_yaml(path)


def test_a_value_that_is_set_is_not_changed_by_what_is_set_inside_it() -> None:
    bundle = {"method": "lora", "rank": 4}
    first = assign({}, [("adapter", bundle), ("adapter.dropout", 0.1)])
    assert first == {"adapter": {"method": "lora", "rank": 4, "dropout": 0.1}}
    assert assign({}, [("adapter", bundle)]) == {"adapter": {"method": "lora", "rank": 4}}
