"""The fixed text of a prompt: what stands before the history, and between it and the answer."""

from typing import TYPE_CHECKING

from hf_rec.data.prompts.path_forms import PathForms
from hf_rec.data.prompts.text_encoder import PlainTextEncoder


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMS = ("plain", "alpaca", "chat")
PREAMBLE = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request."
)
INSTRUCTION = "The input lists the items a user has chosen, oldest first{lines}. Write the item chosen next."
HISTORY = "{history}"  # its place in a template
HISTORY_PLACEHOLDER = "[[the history of the user]]"


def check_frame(form: str, instruction: str | None, template: str | None) -> None:
    """Refuse wording that a form has no place for, and a template in which the history has not one place."""
    if form not in FORMS:
        raise ValueError(f"`form` must be one of {', '.join(FORMS)}, got {form!r}.")
    if form == "plain" and instruction is not None:
        raise ValueError('`instruction` has no place in form="plain". Use form="alpaca", form="chat" or a `template`.')
    if template is None:
        return
    if form == "alpaca" or instruction is not None:
        raise ValueError(
            '`template` is the whole wording: it goes with form="plain" or form="chat", and without `instruction`. '
            "Write the instruction into it."
        )
    if (count := template.count(HISTORY)) != 1:
        raise ValueError(
            f"`template` must have one place for the history, {HISTORY}, got {count} in {template!r}. Other braces "
            "are text."
        )


def encode_frame(
    tokenizer: "PreTrainedTokenizerBase",
    encoder: PlainTextEncoder,
    form: str,
    instruction: str | None,
    template: str | None,
    separator_ids: list[int],
    forms: PathForms,
) -> tuple[list[int], list[int]]:
    """
    Tokens before and after the history.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Of the language model.
        encoder ([`PlainTextEncoder`]): The same for plain text.
        form (`str`), instruction (`str`, *optional*), template (`str`, *optional*): As of [`Prompt`].
        separator_ids (`list[int]`): Tokens that end an item.
        forms ([`PathForms`]): What items are made of: the instruction that stands where none is given depends on it.
    """
    if instruction is None:
        instruction = INSTRUCTION.format(lines=", one on each line" if forms.one_item_a_line else "")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    if form == "chat":
        return _encode_chat(tokenizer, instruction, template)
    if template is not None:
        head, tail = (_with_control_tokens(tokenizer, piece) for piece in template.split(HISTORY))
        return start + head or separator_ids, tail
    if form == "plain":
        return start or separator_ids, []
    head_text = f"{PREAMBLE}\n\n### Instruction:\n{instruction}\n\n### Input:\n"
    return start + encoder(head_text), encoder("\n### Response:\n")


def _encode_chat(
    tokenizer: "PreTrainedTokenizerBase", instruction: str, template: str | None
) -> tuple[list[int], list[int]]:
    if tokenizer.chat_template is None:
        raise ValueError('`form="chat"` needs a tokenizer with a chat template. Set one, or use form="alpaca".')
    content = f"{instruction}\n\n{HISTORY_PLACEHOLDER}"
    if template is not None:
        content = template.replace(HISTORY, HISTORY_PLACEHOLDER)
    message = {"role": "user", "content": content}
    text = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    pieces = text.split(HISTORY_PLACEHOLDER)
    if len(pieces) != 2:
        raise ValueError(
            f"The chat template shows the user's message {len(pieces) - 1} times or changes it, so the history "
            'has not one place. Use form="alpaca".'
        )
    head, tail = (_with_control_tokens(tokenizer, piece) for piece in pieces)
    return head, tail


def _with_control_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Tokens of text that is no item's: what spells a control token is one."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
