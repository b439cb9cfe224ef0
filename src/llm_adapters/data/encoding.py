"""How an example becomes token ids: prompt and completion, each tokenised alone, then joined.

So the ids of the prompt in training are those of evaluation, and no token straddles the border.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

from llm_adapters.data.example import Example
from llm_adapters.errors import ModelError

IGNORED = -100  # the label that cross-entropy skips


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that a template needs."""

    @property
    def eos_token(self) -> str | None: ...
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def chat_template(self) -> object: ...
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str: ...


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example; ``labels`` is -100 where no loss is taken.

    ``truncated`` tells that the end, and with it the end-of-sequence token, was cut off.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool


class Template(ABC):
    """Turns an example into a prompt and a completion."""

    adds_special_tokens: bool = True  # whether the tokenizer puts its own tokens (BOS) before the prompt

    @abstractmethod
    def prompt(self, tokenizer: Tokenizer, example: Example) -> str:
        """The text up to where the model begins to write."""

    @abstractmethod
    def completion(self, tokenizer: Tokenizer, example: Example) -> str:
        """The text the model should write, without the end-of-sequence token."""

    def prompt_ids(self, tokenizer: Tokenizer, example: Example) -> list[int]:
        """What evaluation feeds to the model: the same ids that stand before the completion in training."""
        ids = tokenizer.encode(self.prompt(tokenizer, example), add_special_tokens=self.adds_special_tokens)
        # Some tokenizers close every text with EOS; here the text goes on.
        return ids[:-1] if self.adds_special_tokens and ids and ids[-1] == tokenizer.eos_token_id else ids

    def encode(
        self,
        tokenizer: Tokenizer,
        example: Example,
        *,
        max_length: int,
        train_on: Literal["completion", "all"],
    ) -> Encoded:
        """Prompt, completion and EOS as ids, cut at ``max_length`` from the right as the reference does.

        An example whose prompt alone is that long keeps no label under ``train_on="completion"``.
        """
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token", mend="set tokenizer.eos_token")
        prompt = self.prompt_ids(tokenizer, example)
        completion = tokenizer.encode(self.completion(tokenizer, example), add_special_tokens=False)
        ids = [*prompt, *completion, tokenizer.eos_token_id]
        labels = ids if train_on == "all" else [IGNORED] * len(prompt) + ids[len(prompt) :]
        return Encoded(ids[:max_length], labels[:max_length], truncated=len(ids) > max_length)
