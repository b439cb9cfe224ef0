from pathlib import Path

import pytest

from llm_adapters.errors import DataError
from llm_adapters.evaluation.rows import RowWriter, read_rows


def test_a_line_cut_off_by_a_kill_is_dropped_and_the_file_ends_the_same(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    rows = [{"adapter": a, "row": r, "text": "größer\u2028"} for a in ("x", None) for r in (1, 0)]
    writer = RowWriter(whole)
    for row in rows:
        writer.add(row)
    writer.finish([None, "x"])

    first = RowWriter(cut)
    for row in rows[:2]:
        first.add(row)
    with cut.open("ab") as file:
        file.write(b'{"adapter": null, "row": 1, "te')
    assert read_rows(cut) == rows[:2]
    second = RowWriter(cut)
    for row in rows[2:]:
        second.add(row)
    ordered = second.finish([None, "x"])
    assert [(row["adapter"], row["row"]) for row in ordered] == [(None, 0), (None, 1), ("x", 0), ("x", 1)]
    assert cut.read_bytes() == whole.read_bytes()


def test_a_damaged_line_is_named_unless_it_will_be_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"row": 0}\nrubbish\n{"row": 2}\n{"ro')
    with pytest.raises(DataError, match="line 2 is damaged"):
        read_rows(path)
    assert read_rows(path, mend=True) == [{"row": 0}, {"row": 2}]
    path.write_bytes(b'{"row": 0}\n{"ro')
    assert read_rows(path) == [{"row": 0}]
