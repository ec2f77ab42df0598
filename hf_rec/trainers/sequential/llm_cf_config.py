"""Arguments of `LLMCFTrainer`."""

from dataclasses import dataclass, field

from hf_rec.trainers.sequential.config import SequentialConfig


@dataclass
class LLMCFConfig(SequentialConfig):
    """
    Arguments of [`LLMCFTrainer`], on top of those of [`SequentialConfig`].

    Parameters:
        example_text_column (`str`, *optional*):
            Column of the training rows with a text about each, e.g. what a language model says about the history.
            Default: the titles of the history, where the catalog has titles.
        example_text_vectors (`str`, *optional*):
            `.npy` file of vectors of such texts instead, row i belongs to training row i.
        reconstruction_weight (`float`, *optional*, defaults to `0.0`):
            Weight of one minus the cosine between what the decoder makes of the examples of a training row and the
            vector of the text of that row.
    """

    example_text_column: str | None = field(
        default=None, metadata={"help": "Column of the training rows with a text; default: titles of the history."}
    )
    example_text_vectors: str | None = field(
        default=None, metadata={"help": ".npy file of vectors of texts of the training rows."}
    )
    reconstruction_weight: float = field(
        default=0.0, metadata={"help": "Weight of giving back the text of a training row from its examples."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reconstruction_weight >= 0:
            raise ValueError(f"`reconstruction_weight` must be at least 0, got {self.reconstruction_weight}.")
        if self.example_text_column is not None and self.example_text_vectors is not None:
            raise ValueError("Give `example_text_column` or `example_text_vectors`, not both.")
