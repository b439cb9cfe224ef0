"""What a run costs by the measure of a budget: parameters, operations, memory or time, each computed, none measured.

A study must expand to the same runs whenever it is read, so nothing here looks at a clock.
"""

from __future__ import annotations

from collections.abc import Mapping

from llm_adapters.adapters.attach import attach, detach
from llm_adapters.adapters.base import Base
from llm_adapters.adapters.method import Method, SiteMethod
from llm_adapters.config.schema import RunConfig
from llm_adapters.model.selection import select
from llm_adapters.model.without_numbers import WithoutNumbers
from llm_adapters.runs.training_shape import TrainingShape
from llm_adapters.study.bases import Bases
from llm_adapters.study.spec import Measure

UNITS: Mapping[Measure, str] = {
    "parameters": "parameters", "flops": "operations a token", "memory": "bytes", "time": "operations of training",
}  # fmt: skip
_NAME = "cost"


def flops_per_token(method: Method, base: Base) -> int:
    """Floating-point operations that a method adds to the forward pass of one token, a product-and-sum counted as two.

    Forms at sites: two for each parameter. Virtual tokens: the attention of every query head to P more keys and
    values, ``2 P H (d_k + d_v)`` in each layer; that the virtual tokens themselves are computed once a batch is
    left out. Backward passes cost in proportion.
    """
    if isinstance(method, SiteMethod):
        return 2 * method.count(base)
    tokens = int(getattr(method, "tokens", 0))
    layers = {site.layer for site in select(base.sites, ["attn"], getattr(method, "layers", "all"))}
    heads = int(base.model.config.get_text_config(decoder=True).num_attention_heads)
    shapes = [shape for layer, shape in base.kv_shapes.items() if layer in layers]
    return sum(2 * tokens * heads * (shape.key_width + shape.value_width) for shape in shapes)


class Costs:
    """The costs of runs by one measure.

    ``memory`` is the peak of a training on the device that is here, without what the process holds beside it: weights,
    adapter, moments, and the fullest micro-batch of its data, counted on the meta device. ``time`` is all operations of
    its steps, forward and backward, the base's included: the time of a machine on which every product runs at one
    rate. In both every example goes through the model whole, as the model is written: what the engine saves for some
    methods and on some devices – beginnings computed once, fused maps – would favour them. Runs that differ in the seed
    alone count as the first of them, so that they get one size.
    """

    def __init__(self, measure: Measure, bases: Bases) -> None:
        self.measure, self.bases = measure, bases
        self._shapes: dict[str, TrainingShape] = {}
        self._known: dict[str, int] = {}

    def of(self, config: RunConfig) -> int:
        """What a run costs, in ``UNITS``.

        Raises:
            UserError: its model, data or methods are wrong.
        """
        if self.measure in ("parameters", "flops"):
            base = self.bases.get(config.model)
            cost = flops_per_token if self.measure == "flops" else lambda method, base: method.count(base)
            return sum(cost(method, base) for method in config.adapter)
        key = config.model_dump_json(exclude={"name", "seed", "evaluate"})
        if key not in self._known:
            self._known[key] = self._trained(config)
        return self._known[key]

    def _trained(self, config: RunConfig) -> int:
        setting = config.model_dump_json(exclude={"name", "seed", "evaluate", "adapter"})
        if setting not in self._shapes:
            self._shapes[setting] = TrainingShape.of(config, as_written=True)
        shape = self._shapes[setting]
        with WithoutNumbers():
            adapter = attach(shape.model, list(config.adapter), _NAME, tokenizer=shape.tokenizer)
        try:
            return sum(shape.memory(adapter).values()) if self.measure == "memory" else round(shape.operations())
        finally:
            detach(shape.model, _NAME)
