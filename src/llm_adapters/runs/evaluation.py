"""Evaluating any number of adapters of one base together: the base is loaded once."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from llm_adapters.adapters.attach import attach
from llm_adapters.adapters.store import read_record
from llm_adapters.config.schema import EvaluateSection
from llm_adapters.data.templates import TEMPLATES
from llm_adapters.errors import AdapterError, OutputError
from llm_adapters.evaluation.leaks import Leaks, TrainingData
from llm_adapters.evaluation.rows import read_rows
from llm_adapters.evaluation.runner import decoded_alone, evaluate
from llm_adapters.evaluation.score import Score, means, write_summary
from llm_adapters.evaluation.suite import Suite, check_files
from llm_adapters.model import load_model
from llm_adapters.model.quantised_linears import quantization_of
from llm_adapters.model.quantization import KINDS, NONE
from llm_adapters.runs.folder import exclusively, fresh_folder, is_leftover, refuse_file, remove, write_whole
from llm_adapters.runs.manifest import data_digest, environment
from llm_adapters.runs.names import MANIFEST, RECORD
from llm_adapters.runs.run import Observer


@dataclass(frozen=True)
class Target:
    """What is evaluated.

    Attributes:
        name: what its rows are filed under; None is the bare base.
        base: the source of its base model.
        folder: of its adapter; None for the bare base.
        template: the template it was trained with, if its run tells.
        training: what it was trained on, if its run tells.
        dtype: that its base was trained with, if its run tells.
        quantization: that its base was trained with, if it is one that ``load_model`` does.
        recipe: digest of the run's configuration but for name, seed and evaluation; runs that share it are seeds of
            one recipe.
    """

    name: str | None
    base: str
    folder: Path | None
    template: str | None = None
    training: TrainingData | None = None
    dtype: str = "auto"
    quantization: str = NONE
    recipe: str | None = None


def read_targets(sources: Sequence[str], base: str | None, *, with_base: bool) -> list[Target]:
    """The folders of runs or adapters, or a model's source, as targets on one base.

    Args:
        sources: folders of runs, folders of adapters, or one model.
        base: the base's source, where the adapters' own record of it cannot be loaded.
        with_base: evaluate the bare base too.

    Raises:
        AdapterError: the adapters have different bases, or two have the same name.
    """
    targets = [_target(source, base) for source in sources]
    bases = sorted({target.base for target in targets})
    if len(bases) != 1:
        raise AdapterError(f"one evaluation has one base, these have {', '.join(bases)}", mend="evaluate them apart")
    if with_base and all(target.name is not None for target in targets):
        template = targets[0].template
        targets = [Target(None, bases[0], None, template), *targets]
    names = [target.name for target in targets]
    if len(set(names)) != len(names):
        twice = [target for target in targets if names.count(target.name) > 1]
        if len({target.folder for target in twice if target.name == twice[0].name}) == 1:
            raise AdapterError(f"'{twice[0].name or twice[0].base}' is given twice", mend="give it once")
        raise AdapterError(
            f"two targets have the same name, '{twice[0].name}': "
            + ", ".join(str(target.folder) for target in twice if target.name == twice[0].name),
            mend="rename the folder of one of them",
        )
    return targets


def common_template(targets: Sequence[Target]) -> str:
    """The template that the targets were trained with; ``plain`` where none tells.

    Raises:
        AdapterError: they were trained with different ones, so that one prompt would not be fair to all.
    """
    told = {str(target.name): target.template for target in targets if target.name and target.template}
    if len(set(told.values())) > 1:
        listed = ", ".join(f"{name}: {template}" for name, template in told.items())
        raise AdapterError(
            f"the runs have different templates ({listed})",
            mend="--template NAME asks all alike; or evaluate them apart, then llm-adapters compare",
        )
    return next(iter(told.values()), "plain") or "plain"


def common_quantization(targets: Sequence[Target]) -> str:
    """The quantisation that the targets' base was trained with.

    Raises:
        AdapterError: they were trained with different ones, so that no base is the own one of all.
    """
    told = {str(target.name): target.quantization for target in targets if target.folder is not None}
    if len(set(told.values())) > 1:
        listed = ", ".join(f"{name}: {kind}" for name, kind in told.items())
        raise AdapterError(
            f"the adapters were trained on differently quantised bases ({listed})",
            mend=f"--quantization {NONE} (or another) evaluates all on one base; or evaluate them apart",
        )
    return next(iter(told.values()), NONE)


def _target(source: str, base: str | None) -> Target:
    path = Path(source)
    if path.name == "adapter" and (path.parent / "config.yaml").is_file():
        path = path.parent
    config = path / "config.yaml"
    if (path / "adapter" / "adapter.json").is_file() and config.is_file():
        return _of_run(path, yaml.safe_load(config.read_text(encoding="utf-8")), base)
    if (path / "adapter.json").is_file():
        known = read_record(path)["base"]
        return Target(_name(path.name), base or str(known["model"]), path, quantization=_loadable(known))
    if config.is_file():
        raise AdapterError(f"'{source}' holds a run whose training has not ended", mend="the command that began it")
    if path.is_dir() and not (path / "config.json").is_file():
        raise AdapterError(f"'{source}' holds neither a run nor an adapter nor a model", mend="check the path")
    if not path.exists() and path.parent != Path() and path.parent.is_dir():
        there = [each.name for each in path.parent.iterdir() if (each / "adapter").is_dir() or _holds(each)]
        raise AdapterError(
            f"'{source}' does not exist", given=path.name, allowed=there, mend="the folder of a run, adapter or model"
        )
    return Target(None, source, None)


def _holds(folder: Path) -> bool:
    """Whether a folder is an adapter's or a model's."""
    return any((folder / file).is_file() for file in ("adapter.json", "config.json"))


def _loadable(base: dict[str, Any]) -> str:
    """The quantisation that a record states, if ``load_model`` can do it; checkpoints in another have it themselves."""
    kind = base.get("quantization")
    return kind if kind in KINDS else NONE


def _of_run(path: Path, record: dict[str, Any], base: str | None) -> Target:
    """The adapter of a run, with what its configuration and its manifest tell."""
    data, manifest = record["data"], path / MANIFEST
    digest = json.loads(manifest.read_text(encoding="utf-8"))["data"]["train"] if manifest.is_file() else None
    if data.get("validation") is not None:
        digest = None  # of less than the whole: held-out rows count as trained on
    held_out = data["validation"] if isinstance(data.get("validation"), int) else 0
    training = TrainingData(data["train"], data["size"], record["seed"], digest, held_out)
    recipe = {key: value for key, value in record.items() if key not in ("name", "seed", "evaluate")}
    return Target(
        _name(path.name), base or record["model"]["source"], path / "adapter", data["template"], training,
        record["model"]["dtype"], record["model"].get("quantization", NONE),
        hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16],
    )  # fmt: skip


def _name(name: str) -> str:
    """A folder's name as that of an attached adapter, which has no dots; ``base`` is taken by the base."""
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    return f"{plain}-adapter" if plain == "base" else plain


def evaluate_targets(
    targets: Sequence[Target],
    suites: Sequence[Suite],
    settings: EvaluateSection,
    folder: Path,
    observer: Observer,
    *,
    dtype: str | None = None,
    quantization: str | None = None,
    force: bool = False,
) -> list[Score]:
    """Evaluate targets on suites and write ``eval/``; a killed evaluation of the same kind goes on where it was.

    Raises:
        OutputError: the folder holds something else.
    """
    check_files(suites)
    dtypes = {target.dtype for target in targets if target.name is not None}
    dtype = dtype or (dtypes.pop() if len(dtypes) == 1 else "auto")
    quantization = quantization or common_quantization(targets)
    how = {"dtype": dtype} | ({} if quantization == NONE else {"quantization": quantization})
    names = {id(template): name for name, template in TEMPLATES.items()}
    record = {
        "targets": [[t.name, t.base, read_record(t.folder)["sha256"] if t.folder else ""] for t in targets],
        "suites": [[s.task.name, s.protocol.name, names[id(s.template)], data_digest(s.examples)] for s in suites],
        "settings": settings.model_dump(exclude={"batch_size", "size", "seed", "data", "protocol", "forgetting"}) | how,
    }
    rows = len(targets) * sum(len(suite.examples) for suite in suites)
    known = _recorded(folder, record, force=force)
    observer.begin(f"loading {targets[0].base}", None)
    model, tokenizer = load_model(targets[0].base, dtype=dtype, quantization=quantization)
    for target in targets:
        if target.folder is not None and target.name is not None:
            attach(model, target.folder, target.name)
    observer.end(f"adapters attached: {sum(target.folder is not None for target in targets)}")
    folder.mkdir(parents=True, exist_ok=True)
    with exclusively(folder):
        for entry in filter(is_leftover, folder.iterdir()):
            remove(entry)
        if not known:  # only now: a mistake in the targets has left nothing behind
            fresh_folder(folder, force=force)
        (folder / MANIFEST).unlink(missing_ok=True)
        write_whole(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        leaks = Leaks(
            {t.name: t.training.load() if t.training else None for t in targets if t.name is not None}, suites
        )
        observer.begin(f"evaluating {rows} rows", rows)
        scores = evaluate(
            model, tokenizer, suites, [target.name for target in targets], settings=settings, folder=folder / "eval",
            leaked=leaks, on_row=observer.advance,
        )  # fmt: skip
        alone = None
        kind = quantization_of(model)
        if model.dtype != torch.float32 or kind is not None:
            observer.begin("decoding some rows again, each alone", None)
            alone = decoded_alone(model, tokenizer, suites, settings=settings, folder=folder / "eval")
            observer.end(f"{alone['differ']} of {alone['rows']} differ")
        averages = means([read_rows(folder / "eval" / file) for file in (suite.file for suite in suites)])
        write_summary(scores, averages, folder / "eval" / "summary.json")
        observer.end("done")
        manifest: dict[str, Any] = {
            **record,
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantization": kind,
            "alone": alone,
            "adapters": {t.name: _described(t) for t in targets if t.name is not None and t.folder is not None},
            **environment(),
        }
        write_whole(folder / MANIFEST, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        return scores


def _described(target: Target) -> dict[str, Any]:
    """What a report tells about an adapter."""
    assert target.folder is not None
    record = read_record(target.folder)
    return {
        "methods": record["methods"],
        "parameters": record["parameters"],
        "training": None if target.training is None else asdict(target.training),
        "recipe": target.recipe,
    }


def _recorded(folder: Path, record: dict[str, Any], *, force: bool) -> bool:
    """Whether ``folder`` holds this very evaluation, or one of fewer targets, to be gone on with.

    Raises:
        OutputError: it holds something else, and replacing it was not asked for or is not allowed.
    """
    path = folder / RECORD
    refuse_file(folder)
    if (folder / "config.yaml").exists():
        raise OutputError(f"'{folder}' holds a training run, which no evaluation replaces", mend="--out another/folder")
    if not path.is_file():
        if folder.exists() and not all(map(is_leftover, folder.iterdir())):
            raise OutputError(f"'{folder}' holds something else", mend="--out another/folder")
        return False
    known = json.loads(path.read_text(encoding="utf-8"))
    more = {**known, "targets": record["targets"]} == record and all(t in record["targets"] for t in known["targets"])
    if more and not force:
        return True
    if not force:
        differ = ", ".join(key for key in record if known.get(key) != record[key])
        raise OutputError(
            f"'{folder}' holds another evaluation: it differs in {differ}",
            mend="--out another/folder, or --force to replace it",
        )
    return False
