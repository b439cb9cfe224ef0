"""The prompt templates by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from llm_adapters.data.encoding import Encoded, Template, Tokenizer
from llm_adapters.data.example import Example
from llm_adapters.errors import DataError, ModelError

__all__ = ["TEMPLATES", "ChatTemplate", "Encoded", "Template", "TextTemplate", "Tokenizer", "get_template"]

_MARK = "⟦completion⟧"


@final
@dataclass(frozen=True)
class TextTemplate(Template):
    """Fixed text around ``{instruction}`` and ``{input}``; ``lead`` is what the completion begins with."""

    without_input: str
    with_input: str
    lead: str = ""

    def prompt(self, tokenizer: Tokenizer, example: Example) -> str:  # noqa: ARG002
        text = self.with_input if example.input else self.without_input
        return text.format(instruction=example.instruction, input=example.input)

    def completion(self, tokenizer: Tokenizer, example: Example) -> str:  # noqa: ARG002
        return self.lead + example.output


@final
class ChatTemplate(Template):
    """The tokenizer's own chat template: one user turn, then one assistant turn, closed as there."""

    adds_special_tokens = False

    def prompt(self, tokenizer: Tokenizer, example: Example) -> str:
        if not tokenizer.chat_template:
            raise ModelError("the tokenizer has no chat template", mend="use the template 'plain'")
        turn = {"role": "user", "content": "\n\n".join(filter(None, (example.instruction, example.input)))}
        return tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)

    def completion(self, tokenizer: Tokenizer, example: Example) -> str:
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False)
        closing = rendered.rpartition(_MARK)[2]
        # Usually the closing is EOS itself; a family that closes with another token keeps it, before EOS.
        return example.output + closing.partition(tokenizer.eos_token or "\n")[0].rstrip()


def _alpaca(header: str, gap: str, indent: str, *, fields: tuple[str, ...]) -> str:
    """The Alpaca wrapper: a header, then titled fields, with ``gap`` as the line between two of them."""
    parts = [f"{indent}### {name.capitalize()}:\n{indent}{{{name}}}\n" for name in fields]
    return f"{header}\n\n" + "".join(f"{part}{gap}\n" for part in parts) + f"{indent}### Response:\n{indent}"


_TASK = "Below is an instruction that describes a task"
_WITH_INPUT = f"{_TASK}, paired with an input that provides further context"
_WRITE = ". Write a response that appropriately completes the request."
_INDENT = " " * 16


def _pair(spaces: tuple[str, str], gap: str, indent: str) -> TextTemplate:
    """Both variants of the wrapper; the reference ends their headers in ``spaces`` (without, with input)."""
    return TextTemplate(
        _alpaca(f"{_TASK}{_WRITE}{spaces[0]}", gap, indent, fields=("instruction",)),
        _alpaca(f"{_WITH_INPUT}{_WRITE}{spaces[1]}", gap, indent, fields=("instruction", "input")),
    )


TEMPLATES: dict[str, Template] = {
    "plain": TextTemplate(
        "Question: {instruction}\nAnswer:", "Question: {instruction}\nInput: {input}\nAnswer:", lead=" "
    ),
    "alpaca": _pair(("", ""), gap="", indent=""),
    # The reference to the byte: what finetune.py trains on, and what evaluate.py asks with, whose white space
    # differs. There the prompt's last space is tokenised together with the completion, here never.
    "paper": _pair(("  ", " "), gap=_INDENT, indent=_INDENT),
    "paper-eval": _pair((" ", ""), gap="", indent=_INDENT),
    "chat": ChatTemplate(),
}


def get_template(name: str) -> Template:
    """The template of that name.

    Raises:
        DataError: there is no such template.
    """
    if name not in TEMPLATES:
        raise DataError(f"there is no template '{name}'", given=name, allowed=TEMPLATES)
    return TEMPLATES[name]
