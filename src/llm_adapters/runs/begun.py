"""Whether a folder holds a run that can be gone on with: the same configuration, the same data, not complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from llm_adapters.errors import OutputError
from llm_adapters.runs.folder import exclusively, fresh_folder, is_leftover, refuse_file, remove, write_whole
from llm_adapters.runs.manifest import environment
from llm_adapters.runs.names import MANIFEST
from llm_adapters.train.training import WITHOUT_EFFECT

CONFIG, BEGUN = "config.yaml", "begun.json"
_WITHOUT_EFFECT = {f"train.{field}" for field in WITHOUT_EFFECT}
_OTHERWISE = "--out another/folder, or --force to replace the run in it"


@contextmanager
def open_run(
    folder: Path,
    config: Mapping[str, Any],
    data: Mapping[str, str | None],
    note: Callable[[str], None],
    *,
    force: bool,
    cohort: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Hold a run's folder: a fresh one, or that of the same run, interrupted.

    Args:
        folder: of the run.
        config: the resolved configuration.
        data: digests of what is read, None for what is not.
        note: told when a run is gone on with, and what is no longer as it was.
        force: start again, whatever run lies there.
        cohort: what trains together, if more than this run does; a member may go on alone, but in no other cohort.

    Raises:
        OutputError: the folder holds a complete run, another one, something else, or is in use.
    """
    refuse_file(folder)
    there = folder.is_dir() and not folder.is_symlink()
    if not there:
        fresh_folder(folder, force=force)
    with exclusively(folder):
        if not there or force or not _goes_on(folder, config, data, note, cohort):
            fresh_folder(folder, force=force)
            begun = {"data": data, "cohort": cohort, **environment()}
            write_whole(folder / BEGUN, json.dumps(begun, indent=2) + "\n")
            # The configuration comes last: from then on there is something to go on with.
            write_whole(folder / CONFIG, _as_yaml(config))
        yield


def _as_yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def _goes_on(
    folder: Path,
    config: Mapping[str, Any],
    data: Mapping[str, str | None],
    note: Callable[[str], None],
    cohort: Mapping[str, Any] | None,
) -> bool:
    if (folder / MANIFEST).exists():
        raise OutputError(f"'{folder}' holds a complete run", mend=_OTHERWISE)
    if not (folder / CONFIG).exists():
        first = list(folder.iterdir())
        if all(entry.name == BEGUN or is_leftover(entry) for entry in first):  # killed in its first moment
            for entry in first:
                remove(entry)
        return False
    try:
        known = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
        begun = json.loads((folder / BEGUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as failure:
        raise OutputError(
            f"'{folder}' holds a run that cannot be gone on with: {failure}", mend=_OTHERWISE
        ) from failure
    differing = differences(known, config)
    if of_effect := [line for line in differing if not _is_harmless(line)]:
        raise OutputError(
            f"'{folder}' holds another run; it differs in\n  " + "\n  ".join(of_effect),
            mend=f"the same configuration goes on with it; {_OTHERWISE}",
        )
    changed = [name for name, now in data.items() if now and begun["data"].get(name, now) not in (now, None)]
    if changed:
        raise OutputError(
            f"the {' and the '.join(changed)} data changed since the run in '{folder}' began", mend=_OTHERWISE
        )
    if cohort is not None and begun.get("cohort") != cohort:
        among = begun.get("cohort")
        others = f"a cohort of {', '.join(among['members'])} with {among['rows']} rows" if among else "no cohort"
        raise OutputError(
            f"the run in '{folder}' began in {others}",
            mend=f"the same members and --rows go on with it, or llm-adapters run with this one alone; {_OTHERWISE}",
        )
    for entry in folder.iterdir():
        if is_leftover(entry):
            remove(entry)
    if differing:  # the dtype stays as it was named: what it may be, the checkpoints decide
        model = {**config["model"], "dtype": known["model"].get("dtype", config["model"]["dtype"])}
        write_whole(folder / CONFIG, _as_yaml({**config, "model": model}))
    note(f"going on with the run in '{folder}'")
    now = environment()
    for what in differences({key: begun.get(key, value) for key, value in now.items()}, now):
        note(f"not as when the run began, so the last bits may differ: {what}")
    return True


def _is_harmless(difference: str) -> bool:
    """Whether a run goes on over a difference: what "auto" for the dtype came to, its checkpoints know."""
    field, _, values = difference.partition(":")
    return field in _WITHOUT_EFFECT or (field == "model.dtype" and "'auto'" in values)


def differences(then: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """The fields of ``then`` that are otherwise ``now``, and those that one of them lacks, one line each."""
    found: list[str] = []
    for key in [*then, *(key for key in now if key not in then)]:
        one, other = then.get(key), now.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differences(one, other, f"{where}{key}.")
        elif one != other:
            found.append(f"{where}{key}: {one!r} there, {other!r} now")
    return found
