"""``llm-adapters data`` on a registry of two small files."""

import hashlib
import json
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from typer.testing import CliRunner

from llm_adapters.cli.data import app
from llm_adapters.data.registry import FILES
from llm_adapters.data.registry_table import RECIPES
from llm_adapters.errors import DataError, OutputError
from llm_adapters.evaluation.task import expand

ROWS = [
    {
        "instruction": f"Ann has {n} red pens and buys {n + 2} more. How many pens has Ann?",
        "output": "",
        "answer": str(n),
    }
    for n in (3, 40)
]
CONTENT = json.dumps(ROWS).encode()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(CONTENT)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder in which ``svamp/test`` is there and ``gsm8k/test`` can be downloaded."""
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("LLM_ADAPTERS_DATA", str(tmp_path))
        here = {"rows": 2, "sha256": hashlib.sha256(CONTENT).hexdigest()}
        here["address"] = f"http://127.0.0.1:{server.server_port}/"
        for name in ("gsm8k/test", "svamp/test"):
            monkeypatch.setitem(FILES, name, replace(FILES[name], **here))
        (tmp_path / "svamp").mkdir()
        (tmp_path / "svamp" / "test.json").write_bytes(CONTENT)
        yield tmp_path
        server.shutdown()


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def line(output, name):
    return next(row for row in output.splitlines() if row.startswith(name)).split()


def test_list_shows_rows_licence_and_state(folder):
    (folder / "boolq").mkdir()
    (folder / "boolq" / "test.json").write_bytes(b"[]")
    result = run("list")
    assert result.exit_code == 0, result.output
    assert line(result.output, "svamp/test") == ["svamp/test", "2", "present", "yes", "MIT"]
    assert line(result.output, "gsm8k/train") == ["gsm8k/train", "7473", "missing", "no", "MIT"]
    assert line(result.output, "boolq/test")[2] == "damaged"
    assert str(folder) in result.output


def test_download_fetches_what_is_missing_and_says_what_cannot_be(folder):
    result = run("download", "gsm8k", "svamp")
    assert result.exit_code == 0, result.output
    assert (folder / "gsm8k" / "test.json").read_bytes() == CONTENT
    said = result.stderr.splitlines()
    assert "gsm8k/test: downloaded" in said
    assert "svamp/test: present" in said
    assert any(re.match("gsm8k/train: has no public address: .*grade-school-math", row) for row in said)


def test_a_file_asked_for_by_its_very_name_must_be_had(folder):
    result = run("download", "gsm8k/train", "gsm8k/test")
    assert isinstance(result.exception, DataError)
    assert "no public address" in str(result.exception)
    assert (folder / "gsm8k" / "test.json").exists()


@pytest.mark.usefixtures("folder")
def test_a_recipe_is_its_parts(monkeypatch):
    monkeypatch.setitem(RECIPES, "math10k", (("gsm8k/test", None), ("mawps/train", None)))
    said = run("download", "math10k").stderr.splitlines()
    assert "gsm8k/test: downloaded" in said
    assert [row for row in said if row.startswith("mawps/train: has no public address")]


@pytest.mark.usefixtures("folder")
def test_a_group_is_its_test_sets(monkeypatch):
    here = FILES["gsm8k/test"]
    sets = expand(["math"])
    for file in (f"{name}/test" for name in sets):
        monkeypatch.setitem(FILES, file, replace(FILES[file], rows=2, sha256=here.sha256, address=here.address))
    said = run("download", "math").stderr.splitlines()
    assert {f"{name}/test: {'present' if name == 'svamp' else 'downloaded'}" for name in sets} < set(said)
    assert [row for row in said if row.startswith("math: has no public address")]  # the training mixture of that name
    shown = run("contamination", "svamp/test", "math").stdout.splitlines()
    assert [row.split()[0] for row in shown] == ["test", *sets]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("command", [["download", "gms8k"], ["contamination", "svamp/test", "gms8k"]])
def test_an_unknown_benchmark_names_the_nearest(command):
    error = run(*command).exception
    assert isinstance(error, DataError)
    assert error.nearest == "gsm8k"


def test_contamination_prints_a_table_and_writes_the_rows(folder):
    train, out = folder / "train.jsonl", folder / "hits.jsonl"
    train.write_text(json.dumps(ROWS[0]) + "\n")
    result = run("contamination", train, "svamp", "--out", out)
    assert result.exit_code == 0, result.output
    # The other row is the same question with other numbers.
    assert line(result.output, "svamp") == ["svamp", "2", "1", "2", "1", "2", "100.0%"]
    assert [json.loads(row) for row in out.read_text().splitlines()] == [
        {"benchmark": "svamp", "row": 0, "kind": "exact", "train_rows": [0]},
        {"benchmark": "svamp", "row": 0, "kind": "numbers-masked", "train_rows": [0]},
        {"benchmark": "svamp", "row": 0, "kind": "8-gram", "train_rows": [0]},
        {"benchmark": "svamp", "row": 1, "kind": "numbers-masked", "train_rows": [0]},
    ]
    assert isinstance(run("contamination", train, "svamp", "--out", out).exception, OutputError)
    assert run("contamination", train, "svamp", "--out", out, "--force").exit_code == 0
    assert isinstance(run("contamination", train, "svamp", "--out", folder / "no" / "x").exception, OutputError)
    assert sorted(path.name for path in folder.iterdir()) == ["hits.jsonl", "svamp", "train.jsonl"]


def test_contamination_takes_all_sets_that_are_there(folder):
    result = run("contamination", "svamp/test")
    assert [row.split()[0] for row in result.stdout.splitlines()] == ["test", "svamp"]
    assert "left out, not in the data folder: multiarith, gsm8k" in result.stderr
    (folder / "svamp" / "test.json").rename(folder / "train.json")
    error = run("contamination", folder / "train.json").exception
    assert isinstance(error, DataError)
    assert "llm-adapters data download" in error.mend
