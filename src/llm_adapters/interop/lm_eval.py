"""EleutherAI's lm-evaluation-harness: its tasks on a base with any of its adapters, scored and decoded by our engine.

    lm_eval.simple_evaluate(AdaptersLM(model, tokenizer, route="math"), tasks=["arc_easy"])
    llm-adapters lm-eval --model llm-adapters --model_args base=MODEL,adapter=FOLDER --tasks arc_easy

What is asked, and how it becomes tokens, is as in the harness's own model ``hf``, so that scores are comparable.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from jinja2 import TemplateError
from tqdm import tqdm

from llm_adapters.adapters.attach import attach, attached
from llm_adapters.adapters.routing import RowRoute, read_route
from llm_adapters.adapters.store import read_record
from llm_adapters.errors import MissingExtraError, UserError
from llm_adapters.generate import Request, generate
from llm_adapters.generate.likelihood import likelihoods
from llm_adapters.generate.stopping import stop_ids
from llm_adapters.interop.lm_eval_options import Ending, read_batch_size
from llm_adapters.model import load_model
from llm_adapters.model.loading import BUNDLED
from llm_adapters.model.quantised_linears import quantization_of
from llm_adapters.model.quantization import KINDS, NONE

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import resolve_max_length
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, simple_parse_args_string
except ImportError as error:
    raise MissingExtraError("lm_eval", "lm-eval", "lm-evaluation-harness") from error


@register_model("llm-adapters")
class AdaptersLM(TemplateLM):
    """A base and its adapters as a model of the harness.

    Attributes:
        model: the base, adapters attached.
        tokenizer: its tokenizer.
        route: names of the adapters that every request goes through.
        batch_size: rows decoded or scored together.
        max_length: tokens that the model takes, less the virtual ones of the route.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        route: RowRoute = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        max_length: int | None = None,
    ) -> None:
        """Take a loaded model.

        Args:
            model: a causal language model, with or without adapters.
            tokenizer: its tokenizer.
            route: an attached adapter, several at once in a list, or None for the bare base.
            batch_size: a number, or "auto": 64, or ``max_batch_size`` if given.
            max_batch_size: see ``batch_size``.
            max_length: default: what the model's config says, less the virtual tokens of the route.

        Raises:
            RouteError: an adapter is not attached.
            UserError: the batch size is no number.
        """
        super().__init__()
        known = attached(model)
        read_route([route], list(known))
        self.route = () if route is None else (route,) if isinstance(route, str) else tuple(route)
        self.model, self.tokenizer = model.eval(), tokenizer
        self.batch_size = read_batch_size(batch_size, max_batch_size)
        virtual = sum(known[name].virtual_tokens for name in self.route)
        self.max_length = max_length or resolve_max_length(model.config, tokenizer) - virtual
        self._device = model.get_input_embeddings().weight.device

    @classmethod
    def load(
        cls,
        base: str | None = None,
        adapter: str | Sequence[str] = (),
        *,
        dtype: str = "auto",
        quantization: str | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> Self:
        """Load a base and attach saved adapters.

        Args:
            base: as for :func:`llm_adapters.load_model`; default: what the first adapter was trained on, or else the
                bundled model.
            adapter: folder of a saved adapter, or of several, which every row then goes through at once.
            quantization: of the base; default: what the first adapter was trained on.
            dtype, device, trust_remote_code: as for :func:`llm_adapters.load_model`.
            **options: of the constructor.

        Raises:
            ModelError, AdapterError: the base or an adapter cannot be loaded.
        """
        folders = [Path(folder).expanduser() for folder in ([adapter] if isinstance(adapter, str) else adapter)]
        bases = [read_record(folder)["base"] for folder in folders]
        source = base or next((str(each["model"]) for each in bases), BUNDLED)
        trained = next((each.get("quantization") for each in bases), None)
        model, tokenizer = load_model(
            source, dtype=dtype, device=device, trust_remote_code=trust_remote_code,
            quantization=quantization or (trained if trained in KINDS else NONE),
        )  # fmt: skip
        names = [attach(model, folder, f"adapter-{i}").name for i, folder in enumerate(folders, 1)]
        return cls(model, tokenizer, route=names, **options)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> Self:
        """What the harness calls with ``--model_args``, and with ``--batch_size`` and ``--device``."""
        parameters = (*inspect.signature(cls.load).parameters.values(), *inspect.signature(cls).parameters.values())
        named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD}
        allowed = sorted(named - {"model", "tokenizer", "route"})
        for name in arg_dict.keys() - allowed:
            raise UserError(f"there is no model argument '{name}'", given=name, allowed=allowed)
        given = {key: value for key, value in (additional_config or {}).items() if value is not None}
        if str(given.get("device")).startswith("cuda") and not torch.cuda.is_available():
            del given["device"]  # the command line's default, on every machine
        return cls.load(**given | dict(arg_dict))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> Self:
        """The same for ``base=…,adapter=…``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """Part of the name of the harness's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results."""
        adapters = attached(self.model)
        recipes = {name: [method.recipe() for method in adapters[name].methods] for name in self.route}
        return {
            "base": self.model.config.name_or_path,
            "adapters": recipes,
            "model_dtype": str(self.model.dtype),
            "quantization": quantization_of(self.model),
        }

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt for a conversation; a system turn is left out where the template refuses it."""
        options = {
            "tokenize": False,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return str(self.tokenizer.apply_chat_template(chat_history, **options))
        except TemplateError:
            turns = [turn for turn in chat_history if turn["role"] != "system"]
            return str(self.tokenizer.apply_chat_template(turns, **options))

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_options: Any) -> list[int]:
        """Token ids; special tokens as the tokenizer adds them, but none to a text that begins with BOS already."""
        if add_special_tokens is None:
            add_special_tokens = not string.startswith(self.tokenizer.decode(self.prefix_token_id))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_options: Any
    ) -> list[tuple[float, bool]]:
        """Log-likelihood, and whether the continuation is the greedy one, for (texts, context, continuation)."""
        # The last token is only predicted, so it takes no room.
        fitted = [Request(self._end(ids, self.max_length + 1 - len(more)), more) for _, ids, more in requests]
        with tqdm(total=len(fitted), desc="log-likelihoods", disable=disable_tqdm) as bar:
            found = likelihoods(
                self.model, fitted, pad_id=self._pad_id, batch_size=self.batch_size, routes=self._routes(len(fitted)),
                on_requests=bar.update,
            )  # fmt: skip
        return [(each.value, each.greedy) for each in found]

    def loglikelihood_rolling(self, requests: Iterable[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, in windows as long as the model takes; each token is predicted once."""
        windows: list[tuple[int, list[int], list[int]]] = []
        totals: list[float] = []
        for request in requests:
            pieces = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
            windows += [(len(totals), *make_disjoint_window(window)) for window in pieces]
            totals.append(0.0)
        for (text, _, _), (value, _) in zip(windows, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[text] += value
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Completions, each up to the first of its ``until``."""
        groups: dict[Ending, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(Ending.read(request.args[1]), []).append(i)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), desc="completions", disable=disable_tqdm) as bar:
            for ending, members in groups.items():
                for place, text in self._complete([requests[i].args[0] for i in members], ending):
                    texts[members[place]] = text
                    self.cache_hook.add_partial("generate_until", requests[members[place]].args, text)
                    bar.update()
        return texts

    def _complete(self, prompts: Sequence[str], ending: Ending) -> Iterator[tuple[int, str]]:
        """Index and text of each completion, as it is finished."""
        room = self.max_length - ending.limit
        given = [self._end(self.tok_encode(prompt) or [self.prefix_token_id], room) for prompt in prompts]
        for completion in generate(
            self.model, given, max_new_tokens=ending.limit, stop_ids=stop_ids(self.model, self.tokenizer),
            stop_texts=ending.until, tokenizer=self.tokenizer, pad_id=self._pad_id, batch_size=self.batch_size,
            routes=self._routes(len(given)), sampling=ending.sampling,
        ):  # fmt: skip
            text = self.tokenizer.decode(completion.ids, skip_special_tokens=True)
            # The harness cuts at a stop text with which a completion begins, too.
            yield completion.prompt, text[: min((text.find(s) for s in ending.until if s in text), default=len(text))]

    def _end(self, ids: list[int], room: int) -> list[int]:
        """The last ``room`` tokens of what stands before a text.

        Raises:
            UserError: there is no room.
        """
        if room < 1:
            raise UserError(
                f"the model takes {self.max_length} tokens, the task's answers leave {room} of them for its questions",
                mend="--gen_kwargs max_gen_toks=N with a smaller N, or leave the task out",
            )
        if len(ids) > room:
            logging.getLogger(__name__).warning("a prompt of %d tokens is cut to its last %d", len(ids), room)
        return ids[-room:]

    def _routes(self, count: int) -> list[RowRoute] | None:
        return [self.route] * count if attached(self.model) else None

    @property
    def _pad_id(self) -> int:
        return self.tokenizer.pad_token_id or 0
