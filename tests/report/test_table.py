import csv
import io

import pytest

from llm_adapters.report.accuracy import same_model
from llm_adapters.report.table import SHOWN, Number, Range, Table, as_csv, latex, markdown, numeric

TABLE = Table(
    "t", "A & B", ["a|b", "right", "n_1"],
    [["x < y|z", Range(29.04, 23.2, 35.6), Number(1234, "1,234")], ["50 % → {b}", None, Number(0.5, "0.5")]],
    "Note #1.",
)  # fmt: skip


def test_markdown_keeps_bars_and_tags_out_of_the_way() -> None:
    head, rule, first, *_ = markdown(TABLE).splitlines()
    assert head == "| a\\|b | right | n_1 |"
    assert rule == "| --- | ---: | ---: |"
    assert first == "| x &lt; y\\|z | 29.0 (23.2–35.6) | 1,234 |"


def test_latex_escapes_what_it_would_read_as_commands() -> None:
    text = latex(TABLE)
    assert r"\caption{A \& B. Note \#1.}" in text
    assert r"\begin{tabular}{lrr}" in text
    assert r"50 \% $\to$ \{b\} &  & 0.5 \\" in text
    assert r"x \textless{} y\textbar{}z & 29.0 (23.2--35.6) & 1,234 \\" in text


def test_csv_has_numbers_in_full_and_intervals_as_columns() -> None:
    rows = list(csv.reader(io.StringIO(as_csv(TABLE))))
    assert rows[0] == ["a|b", "right", "right low", "right high", "n_1"]
    assert rows[1] == ["x < y|z", "29.04", "23.2", "35.6", "1234"]
    assert rows[2][1:] == ["", "", "", "0.5"]


def test_long_tables_are_cut_where_people_read_them_and_whole_in_csv() -> None:
    table = Table("long", "Long", ["i"], [[Number(i, str(i))] for i in range(SHOWN + 40)])
    assert f"{SHOWN} of {SHOWN + 40} rows; all are in tables/long.csv." in markdown(table)
    assert len(as_csv(table).splitlines()) == SHOWN + 41
    assert numeric(table, 0)


@pytest.mark.parametrize(
    ("source", "model"),
    [
        ("bigscience/bloomz-7b1", "BLOOMz-7B"), ("huggyllama/llama-7b", "LLaMA-7B"),
        ("EleutherAI/gpt-j-6b", "GPT-J-6B"),
        ("meta-llama/Llama-2-7b-hf", None),
    ],
)  # fmt: skip
def test_the_papers_models_are_known_by_their_sources(source: str, model: str | None) -> None:
    assert same_model(source) == model
