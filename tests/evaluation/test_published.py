import pytest

from llm_adapters.evaluation.published import COMMONSENSE, MATH, TABLE_3, TABLE_4, published
from llm_adapters.evaluation.task import expand, tasks


@pytest.mark.parametrize("row", [*TABLE_3, *TABLE_4], ids=lambda row: f"{row.model} {row.method}")
def test_the_printed_mean_is_that_of_the_row(row):
    counted = [value for name, value in row.accuracy.items() if name != "mawps"]  # Table 3 came before it
    assert sum(counted) / len(counted) == pytest.approx(row.mean, abs=0.1)


def test_every_model_has_the_four_methods_in_both_tables():
    models = ("BLOOMz-7B", "GPT-J-6B", "LLaMA-7B", "LLaMA-13B")
    expected = [(model, method) for model in models for method in ("prefix", "series", "parallel", "lora")]
    assert [(row.model, row.method) for row in TABLE_3] == [("GPT-3.5", None), *expected]
    assert [(row.model, row.method) for row in TABLE_4] == [("ChatGPT", None), *expected]


def test_the_columns_are_the_benchmarks():
    assert sorted(MATH) == sorted(expand(["math"]))
    assert sorted(COMMONSENSE) == sorted(expand(["commonsense"]))


def test_every_adapter_is_below_the_majority_rate_of_aqua():
    scores = [row.accuracy["aqua"] for row in TABLE_3 if row.method is not None]
    assert len(scores) == 16
    assert max(scores) < 100 * tasks()["aqua"].majority


@pytest.mark.parametrize(
    ("model", "method", "benchmark", "value"),
    [
        ("LLaMA-7B", "lora", "gsm8k", 37.5),
        ("llama-13b", "parallel", "mawps", 81.1),
        ("GPT-J-6B", "prefix", "hellaswag", 34.4),
        ("BLOOMz-7B", "series", "openbookqa", 68.0),
        ("GPT-3.5", None, "svamp", 69.9),
        ("ChatGPT", None, "arc_easy", 89.8),
        ("ChatGPT", None, "gsm8k", None),
        ("LLaMA-7B", None, "gsm8k", None),
        ("LLaMA-7B", "houlsby", "gsm8k", None),
        ("LLaMA-70B", "lora", "gsm8k", None),
        ("LLaMA-7B", "lora", "mmlu", None),
    ],
)
def test_a_number_is_found_by_model_method_and_benchmark(model, method, benchmark, value):
    assert published(model, method, benchmark) == value
