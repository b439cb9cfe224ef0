import dataclasses

import pytest

from llm_adapters.data.example import Example


def test_meta_is_no_part_of_an_examples_identity():
    one = Example("q", "", "o", "a", meta={"source": "x"})
    assert one == Example("q", "", "o", "a")
    assert len({one, Example("q", "", "o", "a", meta={"source": "y"})}) == 1
    assert one != Example("q", "", "o", "b")


def test_an_example_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Example("q", "", "o", "a").answer = "b"
