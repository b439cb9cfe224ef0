"""What a run is: base, adapter, data, training, evaluation. One YAML file, or nothing but defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    WrapSerializer,
    model_validator,
)

from llm_adapters.config.strict import Strict
from llm_adapters.errors import ConfigError, MethodError

Count = Annotated[int, Field(gt=0, strict=True)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]


Quantization = Literal["none", "bnb-nf4", "bnb-fp4", "bnb-int8", "torchao-int8", "torchao-int4"]


class ModelSection(Strict):
    """The frozen base. ``quantization`` is done on loading; a checkpoint that is quantised already needs none."""

    source: str = "smollm2-135m-instruct"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Quantization = "none"
    trust_remote_code: bool = False


class DataSection(Strict):
    """What is trained on, and how an example becomes text. ``size`` empty is all of a file, or 1,000 generated.

    ``validation`` is a data file or benchmark, or a number of rows to hold out from the training data.
    """

    train: str = "word-problems"
    size: Count | None = None
    validation: Count | str | None = None
    template: str = "plain"
    train_on: Literal["completion", "all"] = "completion"
    max_length: Count = 256


def _known_methods(rates: Any, info: ValidationInfo) -> Any:
    """A learning rate for a method that does not exist would never be used, and never be missed."""
    known = (info.context or {}).get("methods", ())
    for name in rates if isinstance(rates, dict) else ():
        if name not in known:
            raise MethodError(f"there is no method '{name}'", given=name, allowed=known)
    return rates


class TrainSection(Strict):
    """The recipe.

    ``learning_rate`` is one number, or one a method (``{lora: 3e-4, prefix: 3e-2}``); a method without one takes
    its own. ``steps`` caps ``epochs``.

    A checkpoint is written every ``checkpoint_every`` steps, after ``checkpoint_minutes`` without one, and at a new
    best by validation; the last ``keep_checkpoints`` and the best stay. ``validate_every`` empty is once an epoch;
    ``patience`` validations in a row without a new best end the training. The best has the smallest loss, or with
    ``best_by: accuracy`` answers most validation rows correctly (they are decoded as in ``evaluate``).

    In several processes, ``distributed: fsdp`` shards the base over their devices; ``ddp``, and ``auto``, give it whole
    to each.

    With ``packing`` the examples of a micro-batch stand in one row without padding, where the model's attention allows
    it; otherwise, and without, they are padded.

    ``compile`` compiles the decoder's layers with ``torch.compile``, which takes a minute or two at the start;
    not with ``gradient_checkpointing``, whose layers run outside of the compiler.
    ``cache_frozen_layers`` computes the layers below the lowest adapter once for every example and keeps their hidden
    states in memory, which pays from the second epoch on.

    ``trackers`` get every row of ``metrics.jsonl``: any of ``tensorboard``, ``wandb``, ``trackio``, ``mlflow``.
    """

    epochs: Rate = 3
    steps: Count | None = None
    batch_size: Count = 16
    micro_batch: Count | None = None
    learning_rate: Annotated[Rate | dict[str, Rate] | None, AfterValidator(_known_methods)] = None
    warmup: Annotated[int, Field(ge=0)] = 100
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    checkpoint_every: Count | None = None
    checkpoint_minutes: Rate | None = 10
    keep_checkpoints: Count = 2
    validate_every: Count | None = None
    patience: Count | None = None
    best_by: Literal["loss", "accuracy"] = "loss"
    gradient_checkpointing: bool = False
    packing: bool = True
    compile: bool = False
    cache_frozen_layers: bool = False
    distributed: Literal["auto", "ddp", "fsdp"] = "auto"
    trackers: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()

    @property
    def compiles(self) -> bool:
        """Whether layers are compiled."""
        return self.compile and not self.gradient_checkpointing


class EvaluateSection(Strict):
    """What is evaluated before and after training, and how completions are made.

    ``data`` is a benchmark, a group of them (``math``), a data file, or a list of these. ``size`` rows of each are
    sampled by ``seed``, the run's own where it is empty.
    ``batch_size`` empty is what fits into memory; ``max_new_tokens`` empty is each benchmark's own limit;
    ``beams`` decodes the protocol ``paper`` with its 4 beams instead of greedily. ``forgetting`` is a text file, or
    ``builtin``: the cross-entropy on it before and after training goes into the manifest.
    """

    data: str | tuple[str, ...] = "word-problems"
    size: Count | None = 200
    seed: Seed | None = None
    batch_size: Count | None = None
    max_new_tokens: Count | None = None
    beams: bool = False
    protocol: Literal["standard", "paper", "both", "likelihood"] = "standard"
    forgetting: str | None = None


def _parse_methods(value: object, info: ValidationInfo) -> object:
    """One recipe or a list of them, read by the parser that the caller hands in: methods live in a later layer."""
    recipes: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    parse: Callable[[Mapping[str, Any]], Any] = (info.context or {})["parse_method"]
    if not recipes or not all(isinstance(recipe, Mapping) for recipe in recipes):
        raise MethodError("a method, or a list of methods, is needed", mend="adapter: {method: lora}")
    return tuple(parse({"method": "lora", **recipe}) for recipe in recipes)


def _recipes(methods: Any, _next: SerializerFunctionWrapHandler) -> Any:
    recipes = [method.recipe() for method in methods]
    return recipes[0] if len(recipes) == 1 else recipes


class RunConfig(Strict):
    """One run: evaluate the base, train, evaluate again."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    seed: Seed = 0
    model: ModelSection = ModelSection()
    adapter: Annotated[Any, BeforeValidator(_parse_methods), WrapSerializer(_recipes)] = Field(
        default_factory=lambda: {"method": "lora"}
    )
    data: DataSection = DataSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()

    @model_validator(mode="after")
    def _validation_is_there(self) -> Self:
        lost = [name for name in ("validate_every", "patience") if getattr(self.train, name) is not None]
        lost += ["best_by"] if self.train.best_by != "loss" else []
        if lost and self.data.validation is None:
            raise ConfigError(
                f"train.{lost[0]} needs validation data",
                mend="data.validation: 100 holds out 100 rows; a file's path is possible too",
            )
        return self
