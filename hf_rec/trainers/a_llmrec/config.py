"""Arguments of `ALLMRecTrainer`."""

from dataclasses import dataclass, field
from typing import Literal

from hf_rec.evaluation.protocol import Seen
from hf_rec.trainers.base_config import RecommenderConfig


@dataclass
class ALLMRecConfig(RecommenderConfig):
    """
    Arguments of [`ALLMRecTrainer`], on top of those of [`~transformers.TrainingArguments`], some of which have other
    defaults here: as published, 32 rows a batch, 10 epochs and Adam at a constant rate of 1e-4 without clipping.

    Parameters:
        joint_size (`int`, *optional*, defaults to `128`):
            Width of the joint vectors.
        recommendation_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the binary cross-entropy of target and negative, scored with the reconstructed item vectors.
        matching_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the squared error between the joint vector of an item and that of its text.
        alpha (`float`, *optional*, defaults to `0.5`):
            Weight of the squared error of the reconstructed item vectors.
        beta (`float`, *optional*, defaults to `0.2`):
            Weight of the squared error of the reconstructed text vectors. The paper names .5 for some data sets.
        text_source (`str`, *optional*, defaults to `"tfidf"`):
            Where the text vectors of the items come from. `"tfidf"`: TF-IDF and SVD. `"sentence_transformers"`: the
            model of that library in `text_model`. `"language_model"`: mean last-layer states of the causal LM in
            `text_model`. `"file"`: the .npy file in `text_model`, row i of which is item i.
        text_model (`str`, *optional*):
            Folder, Hub id or file for `text_source`.
        text_columns (`list[str]`, *optional*):
            Columns of the catalog that the text is made of. Defaults to the title.
        supervise (`str`, *optional*, defaults to `"all"`):
            `"all"`: every event from `supervise_from` on is a label. `"last"`: the target of a row alone.
        seen (`str`, *optional*, defaults to `"keep"`):
            `"keep"`: validation ranks all items, also those of the history. `"mask"`: it leaves these out.
    """

    per_device_train_batch_size: int = field(default=32, metadata={"help": "Rows of a batch."})
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "Rows ranked at a time."})
    learning_rate: float = field(default=1e-4, metadata={"help": "Learning rate of Adam."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of the learning rate."})
    num_train_epochs: float = field(default=10, metadata={"help": "Passes over the training rows."})
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Norm that gradients are clipped to; 0 for no clipping."}
    )
    metric_for_best_model: str | None = field(default="nll", metadata={"help": "Metric that selects the model."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every weight is used."})

    joint_size: int = field(default=128, metadata={"help": "Width of the joint vectors."})
    recommendation_weight: float = field(default=1.0, metadata={"help": "Weight of the recommendation loss."})
    matching_weight: float = field(default=1.0, metadata={"help": "Weight of the match of item and text."})
    alpha: float = field(default=0.5, metadata={"help": "Weight of the reconstruction of items."})
    beta: float = field(default=0.2, metadata={"help": "Weight of the reconstruction of texts."})
    text_source: Literal["tfidf", "sentence_transformers", "language_model", "file"] = field(
        default="tfidf", metadata={"help": "Where the text vectors of the items come from."}
    )
    text_model: str | None = field(default=None, metadata={"help": "Folder, Hub id or .npy file of `text_source`."})
    text_columns: list[str] | None = field(default=None, metadata={"help": "Columns of text; default: title."})
    supervise: Literal["all", "last"] = field(
        default="all", metadata={"help": "All events are labels, or the last one of a row."}
    )
    seen: Seen = field(default="keep", metadata={"help": "Validation: rank items of the history, or leave them out."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.joint_size < 1:
            raise ValueError(f"`joint_size` must be at least 1, got {self.joint_size}.")
        weights = {name: getattr(self, name) for name in ("recommendation_weight", "matching_weight", "alpha", "beta")}
        for name, value in weights.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"`{name}` must be a number of at least 0, got {value}.")
        if not any(weights.values()):
            raise ValueError("The weights of all parts of the loss are 0: there would be nothing to learn.")
        if (self.text_model is None) != (self.text_source == "tfidf"):
            raise ValueError(
                f"`text_model` {self.text_model!r} does not go with `text_source` {self.text_source!r}: 'tfidf' needs "
                "none, the others a folder, an id or a file."
            )
        if self.text_source == "file" and self.text_columns is not None:
            raise ValueError("`text_columns` has no effect with `text_source='file'`, which reads no text.")
