import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llm_adapters.cli import compare as subcommand
from llm_adapters.errors import DataError


def write_run(folder: Path, **adapters: dict[str, str]) -> Path:
    """A run's predictions: for each adapter, of each file the statuses of its rows as letters."""
    (folder / "eval").mkdir(parents=True)
    short = {"c": "correct", "w": "wrong", "u": "unparsed"}
    for adapter, sets in adapters.items():
        for file, statuses in sets.items():
            name, _, protocol = file.partition(".")
            with (folder / "eval" / f"{file}.jsonl").open("a", encoding="utf-8") as out:
                for i, status in enumerate(statuses):
                    row = {"adapter": None if adapter == "base" else adapter, "benchmark": name, "row": i,
                           "question": f"q{i}", "gold": "1", "status": short[status]}  # fmt: skip
                    out.write(json.dumps(row | {"protocol": protocol or "standard"}) + "\n")
    return folder


def said(*arguments: object) -> str:
    import typer

    app = typer.Typer()
    app.command()(subcommand.command)
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return " ".join(done.output.split())


def test_the_tuned_rows_of_two_runs_are_compared(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", base={"gsm8k": "w" * 60}, lora={"gsm8k": "c" * 20 + "w" * 40, "svamp": "cw" * 20})
    b = write_run(tmp_path / "b", base={"gsm8k": "w" * 60}, series={"gsm8k": "c" * 50 + "u" * 10, "svamp": "cw" * 20})
    text = said(a, b)
    assert "gsm8k 60 33.3% 83.3% 0, 10 +50.0" in text
    assert "svamp 40 50.0% 50.0% 0, 0 +0.0 -4.7 to +4.7 1 1" in text
    assert "B is better on gsm8k by 50.0 points, 95 % CI 3" in text
    assert "no evidence of a difference on svamp" in text
    assert "mean 100 +25.0" in text


def test_the_base_and_a_named_adapter_can_be_asked_for(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base={"aqua": "w" * 20}, one={"aqua": "c" * 20}, two={"aqua": "cw" * 10})
    assert "aqua 20 0.0% 100.0%" in said(f"{run}:base", f"{run}:one")
    assert "aqua 20 100.0% 50.0%" in said(f"{run}:one", f"{run}:two")


def test_a_protocol_is_compared_with_itself(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", lora={"aqua": "cccc", "aqua.paper": "cwww"})
    b = write_run(tmp_path / "b", lora={"aqua": "cccc", "aqua.paper": "ccww"})
    assert "aqua 4 100.0% 100.0%" in said(a, b)
    assert "aqua 4 25.0% 50.0%" in said(a, b, "--protocol", "paper")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/nowhere", "{0}/a"], "does not exist"),
        (["{0}/many", "{0}/a"], "rows of 2 adapters"),
        (["{0}/a", "{0}/many:tow"], "nearest: two"),
        (["{0}/a:base", "{0}/a"], "has no rows of 'base'"),
        (["{0}/a", "{0}/other"], "no row is in both"),
        (["{0}/a", "{0}/a"], "is compared with itself"),
        (["{0}/a", "{0}/a", "--protocol", "papre"], "nearest: paper"),
        (["{0}/a", "{0}/a", "--protocol", "paper"], "rows of 0 adapters under the protocol 'paper'"),
    ],
)
def test_a_mistake_is_named(arguments: list[str], message: str, tmp_path: Path) -> None:
    write_run(tmp_path / "a", lora={"aqua": "cw"})
    write_run(tmp_path / "many", one={"aqua": "cw"}, two={"aqua": "cw"})
    write_run(tmp_path / "other", lora={"gsm8k": "cw"})
    with pytest.raises(DataError, match=message):
        said(*(argument.format(tmp_path) for argument in arguments))
