"""What a run will do, as far as it is known before weights are loaded; and its manifest, once it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llm_adapters.adapters.adapter import Adapter
from llm_adapters.adapters.base import Base
from llm_adapters.adapters.fingerprint import fingerprint
from llm_adapters.config.schema import RunConfig
from llm_adapters.data.encoding import Encoded, Template
from llm_adapters.data.example import Example
from llm_adapters.data.templates import get_template
from llm_adapters.evaluation.forgetting import plain_text
from llm_adapters.evaluation.suite import Suite
from llm_adapters.model import empty_model, find_sites
from llm_adapters.model.quantization import NONE, check_quantization, stored_quantization
from llm_adapters.model.without_numbers import WithoutNumbers
from llm_adapters.runs.manifest import data_digest, environment, peak_memory_bytes
from llm_adapters.runs.training_data import TrainingData
from llm_adapters.train import Team, TrainResult, check_trackers
from llm_adapters.train.options import ALONE, check_options
from llm_adapters.train.sharding import is_sharded, refuse_quantised


@dataclass(frozen=True)
class RunPlan:
    """A run before it begins.

    Attributes:
        suites: what is evaluated; empty where the run only trains.
        rate: the peak learning rate.
        record: the configuration, fully resolved.
        digests: of the data that are read, None for what is not.
        by_accuracy: the validation rows as a set to be answered, where the best is chosen by accuracy.
    """

    config: RunConfig
    template: Template
    data: TrainingData
    suites: Sequence[Suite]
    rate: float
    record: dict[str, Any]
    digests: dict[str, str | None]
    by_accuracy: Suite | None

    @classmethod
    def of(cls, config: RunConfig, *, score: bool) -> RunPlan:
        """Read everything that a configuration names, but for the model's weights.

        Raises:
            UserError: anything in it that the user can mend.
        """
        template = get_template(config.data.template)
        data = TrainingData.of(config.data, config.seed)
        suites = Suite.asked(config.evaluate, config.seed, config.data.template) if score else []
        rate = learning_rate(config)
        check_methods(config)
        check_trackers(config.train.trackers)
        if config.evaluate.forgetting is not None:
            plain_text(config.evaluate.forgetting)
        asked = {suite.task.name: suite.examples for suite in suites}
        digests = {
            "training": data_digest(data.examples),
            "validation": data_digest(data.validation),
            "test": data_digest([example for examples in asked.values() for example in examples]) if suites else None,
        }
        return cls(
            config,
            template,
            data,
            suites,
            rate,
            config.model_dump(mode="json"),
            digests,
            validation_suite(config, data.validation),
        )

    def manifest(
        self,
        adapter: Adapter,
        result: TrainResult,
        encoded: Sequence[Encoded],
        *,
        base_parameters: int,
        forgetting: dict[str, Any] | None,
        seconds: float,
    ) -> dict[str, Any]:
        """The manifest of the run when all else is done."""
        return {
            "config": self.record,
            "learning_rate": self.rate,
            "training": asdict(result),
            "parameters": {"trained": adapter.count(), "base": base_parameters},
            "base": fingerprint(adapter.base),
            "data": {
                "train": self.digests["training"],
                "validation": self.digests["validation"],
                "encoded": data_digest(encoded),
                "test": self.digests["test"] or data_digest([]),
            },
            "forgetting": forgetting,
            "seconds": round(seconds, 1),
            "peak_memory_bytes": peak_memory_bytes(),
            **environment(),
        }


def validation_suite(config: RunConfig, examples: Sequence[Example]) -> Suite | None:
    """The validation rows as a set to be answered, where the best is chosen by accuracy.

    Raises:
        DataError: a row has no gold answer.
    """
    if config.train.best_by == "loss":
        return None
    asked = config.data.validation
    return Suite.of_rows(asked if isinstance(asked, str) else config.data.train, examples, config.data.template)


def check_methods(config: RunConfig) -> None:
    """Refuse methods that do not fit the model, from its configuration alone: before weights are loaded.

    Raises:
        SiteError, MethodError, ModelError, MissingExtraError: as loading and attaching would.
        TrainingError: an option of the recipe that this adapter, or several processes, cannot have.
    """
    asked = config.model.quantization
    check_quantization(asked)
    model = empty_model(config.model.source, trust_remote_code=config.model.trust_remote_code)
    if is_sharded(config.train, Team.join()):
        refuse_quantised(stored_quantization(model.config) if asked == NONE else asked)
    base = Base(model, find_sites(model))
    for method in config.adapter:
        method.count(base)
    if any(getattr(config.train, option) for option in ALONE):
        with WithoutNumbers():
            adapter = Adapter.build("run", config.adapter, base)
        check_options(config.train, adapter, Team.join().size)


def learning_rate(config: RunConfig) -> float:
    """The recipe's learning rate for these methods; where it names none, the methods' own.

    A composed adapter is trained at one rate: the smallest of its methods'.
    """
    given = config.train.learning_rate
    if isinstance(given, float):
        return given
    rates: Mapping[str, float] = given or {}
    return min(rates.get(method.name(), type(method).learning_rate) for method in config.adapter)
