"""Evaluating the base and any number of adapters on sets of examples, together on one loaded model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_adapters.adapters.attach import attached
from llm_adapters.config.schema import EvaluateSection
from llm_adapters.errors import DataError
from llm_adapters.evaluation.judge import Judgement
from llm_adapters.evaluation.rows import Row, RowWriter, read_rows
from llm_adapters.evaluation.score import Score, score
from llm_adapters.evaluation.suite import Suite
from llm_adapters.generate import Completion, Request, beam_search, generate, log_likelihoods
from llm_adapters.generate.inputs import context_length
from llm_adapters.generate.stopping import StopTexts, all_of, cut, stop_ids

_PIECE = 64  # rows whose choices are scored together
_SCORED = 64  # options that go through the model at once

Leaked = Callable[[str | None, Suite], set[int] | None]
"""Of an adapter (None: the base) and a set, the rows that its training data give away; None if they are not known."""


@dataclass
class _Question:
    """A prompt for one adapter, and the examples of suites that it asks for, as (suite, place)."""

    adapter: str | None
    prompt: tuple[int, ...]
    limit: int
    beams: int
    asked_by: list[tuple[int, int]] = field(default_factory=list)


def evaluate(
    model: Any,
    tokenizer: Any,
    suites: Sequence[Suite],
    adapters: Sequence[str | None],
    *,
    settings: EvaluateSection,
    folder: Path,
    leaked: Leaked = lambda _adapter, _suite: None,
    on_row: Callable[[int], None] | None = None,
) -> list[Score]:
    """Answer and judge: every adapter on every row of every suite, all in the same batches.

    Suites that ask the same (two protocols with one prompt) are answered once and judged each for itself. Rows are
    written to ``folder`` as they are finished; rows that are there already are not asked again.

    Args:
        model: the model with the adapters attached.
        suites: the sets.
        adapters: names of attached adapters; None is the bare base.
        settings: batch size, limit of new tokens, beams.
        folder: where the prediction files lie (a run's ``eval``).
        leaked: which rows the training data give away.
        on_row: called with the number of rows that were finished.
    """
    part = Part(suites, {name: name for name in adapters}, folder, leaked)
    return evaluate_parts(model, tokenizer, [part], settings=settings, on_row=on_row)[0]


@dataclass(frozen=True)
class Part:
    """Sets that some adapters are asked, and where the rows go.

    Attributes:
        suites: the sets; parts that share one share what is answered to it.
        adapters: by the name in the rows, the name on the model; None is the bare base.
        folder: where the prediction files lie.
        leaked: by the name in the rows, which rows the training data give away.
    """

    suites: Sequence[Suite]
    adapters: Mapping[str | None, str | None]
    folder: Path
    leaked: Leaked = lambda _adapter, _suite: None


def evaluate_parts(
    model: Any,
    tokenizer: Any,
    parts: Sequence[Part],
    *,
    settings: EvaluateSection,
    on_row: Callable[[int], None] | None = None,
) -> list[list[Score]]:
    """:func:`evaluate` for several folders at once: all in the same batches, and what is the same is answered once."""
    model.eval()
    say = on_row or (lambda _rows: None)
    suites = list({id(suite): suite for part in parts for suite in part.suites}.values())
    places = {id(suite): i for i, suite in enumerate(suites)}
    writers = [[RowWriter(part.folder / suite.file) for suite in part.suites] for part in parts]
    wanted: dict[tuple[int, str | None, int], list[tuple[RowWriter, str | None]]] = {}
    for part, own in zip(parts, writers, strict=True):
        for suite, writer in zip(part.suites, own, strict=True):
            suite.judge_again(writer.rows)
            done = {(row["adapter"], row["row"]) for row in writer.rows}
            say(sum((name, number) in done for name in part.adapters for number in suite.numbers))
            for name, adapter in part.adapters.items():
                for place, number in enumerate(suite.numbers):
                    if (name, number) not in done:
                        wanted.setdefault((places[id(suite)], adapter, place), []).append((writer, name))
    for i, adapter, place, fields in _Run(model, tokenizer, suites, settings).answers(list(wanted)):
        suite, example = suites[i], suites[i].examples[place]
        for writer, name in wanted[i, adapter, place]:
            writer.add({
                "adapter": name, "benchmark": suite.task.name, "protocol": suite.protocol.name,
                "row": suite.numbers[place], "question": example.instruction, "gold": example.answer, **fields,
            })  # fmt: skip
            say(1)
    return [_scored(part, own) for part, own in zip(parts, writers, strict=True)]


def _scored(part: Part, writers: Sequence[RowWriter]) -> list[Score]:
    """Finish the files of a part: what leaked, the order of the rows, and the scores."""
    scores = []
    for suite, writer in zip(part.suites, writers, strict=True):
        known = {name: part.leaked(name, suite) for name in part.adapters}
        for row in writer.rows:
            if row["adapter"] in known:
                rows = known[row["adapter"]]
                row["leaked"] = None if rows is None else row["row"] in rows
        rows_of_suite = writer.finish(list(part.adapters))
        scores += [score(rows_of_suite, suite.task.name, suite.protocol.name, name) for name in part.adapters]
    return scores


def decoded_alone(
    model: Any, tokenizer: Any, suites: Sequence[Suite], *, settings: EvaluateSection, folder: Path, rows: int = 16
) -> dict[str, int]:
    """Decode some finished rows again, each by itself, and count the texts that come out otherwise.

    In float32 none does; a shorter dtype rounds differently in batches of different sizes, and now and then another
    token is the likeliest.

    Returns:
        ``rows`` that were decoded again, spread evenly over all, and how many ``differ``.
    """
    places = [{number: place for place, number in enumerate(suite.numbers)} for suite in suites]
    written = {
        (i, row["adapter"], places[i][row["row"]]): row["completion"]
        for i, suite in enumerate(suites)
        if suite.protocol.generates
        for row in read_rows(folder / suite.file)
    }
    step = max(1, len(written) // rows)
    chosen = list(written)[::step][:rows]
    run = _Run(model, tokenizer, suites, settings.model_copy(update={"batch_size": 1}))
    differ = sum(row["completion"] != written[i, adapter, place] for i, adapter, place, row in run.answers(chosen))
    return {"rows": len(chosen), "differ": differ}


def accuracy(model: Any, tokenizer: Any, suite: Suite, adapter: str | None, *, settings: EvaluateSection) -> float:
    """The share of rows answered correctly, from 0 to 1. Nothing is written, and the model's mode is put back."""
    was_training = model.training
    model.eval()
    try:
        todo = [(0, adapter, place) for place in range(len(suite.examples))]
        answers = _Run(model, tokenizer, [suite], settings).answers(todo)
        return sum(row["status"] == "correct" for *_, row in answers) / len(todo)
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class _Run:
    """What it takes to get answers."""

    model: Any
    tokenizer: Any
    suites: Sequence[Suite]
    settings: EvaluateSection

    def answers(self, todo: Sequence[tuple[int, str | None, int]]) -> Iterator[tuple[int, str | None, int, Row]]:
        """Suite, adapter, place and what the model answered, for everything to do, as it is finished."""
        yield from self._chosen([each for each in todo if not self.suites[each[0]].protocol.generates])
        written = [each for each in todo if self.suites[each[0]].protocol.generates]
        questions: dict[tuple[object, ...], _Question] = {}
        for i, adapter, place in written:
            question = self._question(i, adapter, place)
            key = (adapter, question.prompt, question.limit, question.beams)
            questions.setdefault(key, question).asked_by.append((i, place))
        self._check_lengths(questions.values())
        for beams in sorted({question.beams for question in questions.values()}):
            yield from self._written([q for q in questions.values() if q.beams == beams], beams)

    def _question(self, i: int, adapter: str | None, place: int) -> _Question:
        suite = self.suites[i]
        prompt = suite.template.prompt_ids(self.tokenizer, suite.examples[place])
        limit = self.settings.max_new_tokens or suite.task.max_new_tokens
        return _Question(adapter, tuple(prompt), limit, suite.protocol.beams if self.settings.beams else 1)

    def _check_lengths(self, questions: Iterable[_Question]) -> None:
        """Refuse prompts that leave the model no room for an answer, before anything is asked.

        Raises:
            DataError: there is one.
        """
        room = context_length(self.model)
        long = [q for q in questions if room is not None and len(q.prompt) + q.limit > room]
        if long:
            first = max(long, key=lambda question: len(question.prompt))
            suite, place = self.suites[first.asked_by[0][0]], first.asked_by[0][1]
            raise DataError(
                f"{len(long)} prompts with their answers are longer than the {room:,} tokens that the model takes; the "
                f"longest, row {suite.numbers[place] + 1} of {suite.task.name}, has {len(first.prompt):,} tokens, and "
                f"{first.limit} more may be written",
                mend="shorten or leave out these rows; or a lower --max-new-tokens (evaluate.max_new_tokens)",
            )

    def _written(self, questions: Sequence[_Question], beams: int) -> Iterator[tuple[int, str | None, int, Row]]:
        how: dict[str, Any] = {
            "max_new_tokens": [question.limit for question in questions],
            "stop_ids": stop_ids(self.model, self.tokenizer), "pad_id": self.tokenizer.pad_token_id,
            "routes": self._routes([question.adapter for question in questions]),
            "batch_size": self.settings.batch_size,
        }  # fmt: skip
        prompts = [question.prompt for question in questions]
        if beams > 1:
            decoded = beam_search(self.model, prompts, beams=beams, **how)
        else:
            ended = [all_of(self._ends(question)) for question in questions]
            decoded = generate(self.model, prompts, ended=ended, **how)
        for completion in decoded:
            question = questions[completion.prompt]
            for i, place in question.asked_by:
                yield i, question.adapter, place, self._read(self.suites[i], place, completion)

    def _ends(self, question: _Question) -> list[StopTexts]:
        """What ends its completion; where several read it, it goes on until it is over for all of them."""
        protocols = dict.fromkeys(self.suites[i].protocol for i, _ in question.asked_by)
        return [StopTexts(protocol.stop_texts, self.tokenizer) for protocol in protocols]

    def _read(self, suite: Suite, place: int, completion: Completion) -> Row:
        """What ``suite`` takes a completion for: up to its own end, as if nobody else had read it."""
        end = StopTexts(suite.protocol.stop_texts, self.tokenizer).end(completion.ids)
        ids = completion.ids[:end]
        text = cut(self.tokenizer.decode(ids, skip_special_tokens=True), suite.protocol.stop_texts).strip()
        status, answer = suite.task.judge(text, suite.examples[place], suite.protocol)
        return {
            "completion": text, "answer": answer, "status": status, "tokens": len(ids),
            "stopped": completion.stopped or end is not None,
        }  # fmt: skip

    def _chosen(self, todo: Sequence[tuple[int, str | None, int]]) -> Iterator[tuple[int, str | None, int, Row]]:
        """Choices by log-likelihood, in pieces, so that a kill loses little."""
        wanted = set(todo)
        for piece in self._pieces(todo):
            requests = [self._requests(i, place) for i, _, place in piece]
            whose = [adapter for (_, adapter, _), row in zip(piece, requests, strict=True) for _ in row]
            values = iter(log_likelihoods(
                self.model, [request for row in requests for request in row], pad_id=self.tokenizer.pad_token_id,
                batch_size=self.settings.batch_size or _SCORED, routes=self._routes(whose),
            ))  # fmt: skip
            for each, row in zip(piece, requests, strict=True):
                choice = self._choice(self.suites[each[0]], each[2], [next(values) for _ in row])
                if each in wanted:
                    yield *each, choice

    def _pieces(self, todo: Sequence[tuple[int, str | None, int]]) -> Iterator[list[tuple[int, str | None, int]]]:
        """Neighbours in a file. A piece that a kill left half done is scored whole again: batches, and with them the
        last digits, are those of an undisturbed run."""
        for i, adapter, block in dict.fromkeys((i, adapter, place // _PIECE) for i, adapter, place in todo):
            places = range(block * _PIECE, min((block + 1) * _PIECE, len(self.suites[i].examples)))
            yield [(i, adapter, place) for place in places]

    def _requests(self, i: int, place: int) -> list[Request]:
        suite = self.suites[i]
        example = suite.examples[place]
        context = suite.template.prompt_ids(self.tokenizer, example)
        texts = (
            suite.template.completion(self.tokenizer, replace(example, output=option.text))
            for option in suite.task.options(example)
        )
        return [Request(context, self.tokenizer.encode(text, add_special_tokens=False)) for text in texts]

    def _choice(self, suite: Suite, place: int, values: Sequence[float]) -> Row:
        example = suite.examples[place]
        judgement = suite.task.judge_likelihoods(example, values) if values else Judgement("unparsed", None)
        return {
            "completion": "", "answer": judgement.answer, "status": judgement.status, "tokens": 0, "stopped": True,
            "log_likelihoods": [round(value, 4) for value in values],
        }  # fmt: skip

    def _routes(self, adapters: Sequence[str | None]) -> list[str | None] | None:
        return list(adapters) if attached(self.model) else None
