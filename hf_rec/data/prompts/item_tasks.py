"""
Tasks beside the next item that tell a model what codes mean, made from the catalog alone (the alignment of LC-Rec,
https://huggingface.co/papers/2311.09049): the code of a title, and the title of a code.
"""

import math
from typing import TYPE_CHECKING, Any

from hf_rec.columns import IGNORE_INDEX, INPUT_IDS, LABELS
from hf_rec.data.catalog import Catalog
from hf_rec.data.prompts.next_item import Prompt
from hf_rec.data.prompts.path_forms import CODES, TITLE
from hf_rec.data.prompts.text_encoder import PlainTextEncoder


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TASKS = ("next_item", "title_to_code", "code_to_title")
NEXT_ITEM, TITLE_TO_CODE, CODE_TO_TITLE = range(len(TASKS))
TEXT_ANSWER = CODE_TO_TITLE  # the task whose answer is no item of the trie
_INSTRUCTIONS = {
    TITLE_TO_CODE: "The input is the title of an item. Write its code.",
    CODE_TO_TITLE: "The input is the code of an item. Write its title.",
}
_MARKS = {TITLE_TO_CODE: "Code of: ", CODE_TO_TITLE: "Title of: "}  # in the form without an instruction


def check_tasks(tasks: dict[str, Any]) -> None:
    """
    Refuse shares of tasks that mean nothing.

    Args:
        tasks (`dict[str, float]`): Rows of each task for every row of `"next_item"`, whose share is above 0 too.
    """
    for name, share in tasks.items():
        if name not in TASKS:
            raise ValueError(f"`tasks` names {name!r}, but there are {', '.join(TASKS)}.")
        is_number = isinstance(share, int | float) and not isinstance(share, bool)
        if not is_number or not 0 <= share < math.inf:
            raise ValueError(f"`tasks` must give {name} a share of at least 0, got {share!r}.")
    if not tasks.get(TASKS[NEXT_ITEM]):
        raise ValueError(
            f"`tasks` must give next_item a share above 0, got {tasks.get('next_item')!r}: the others are measured by "
            "it, and evaluation asks for the next item. The usual share is 1."
        )


class TaskPrompt:
    """
    The prompt of a task beside the next item: a question and an answer about one item of the catalog.

    Args:
        task (`int`): `TITLE_TO_CODE` or `CODE_TO_TITLE`.
        prompt ([`Prompt`]): That of the next item, whose answers are codes. Its form and its limits are taken over.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]), catalog ([`Catalog`]): What it was made from.
    """

    def __init__(self, task: int, prompt: Prompt, tokenizer: "PreTrainedTokenizerBase", catalog: Catalog):
        if not prompt.item_path.startswith(CODES):
            raise ValueError(
                f"`tasks` asks for {TASKS[task]}, but items have no codes: `item_path` is {prompt.item_path!r}. Set "
                "it to 'codes:' and the name of a column of the catalog, or leave the task out."
            )
        paths = (prompt.item_path, TITLE) if task == TITLE_TO_CODE else (TITLE, prompt.item_path)
        self.prompt = Prompt(
            tokenizer,
            catalog,
            form=prompt.form,
            max_length=prompt.max_length,
            max_item_tokens=prompt.max_item_tokens,
            separator=prompt.separator,
            instruction=None if prompt.form == "plain" else _INSTRUCTIONS[task],
            item_path=paths[0],
            history_path=paths[1],
        )
        self._mark: list[int] = []
        if prompt.form == "plain":
            self._mark = PlainTextEncoder(tokenizer)(_MARKS[task])

    def encode(self, item: int) -> dict[str, list[int]]:
        """`input_ids` and `labels` of the question about an item (a catalog row): the answer is what is labelled."""
        row = self.prompt.encode_example([item], item)
        if self._mark:
            place = len(self.prompt.encode_history([]))
            row[INPUT_IDS][place:place] = self._mark
            row[LABELS][place:place] = [IGNORE_INDEX] * len(self._mark)
        return row
