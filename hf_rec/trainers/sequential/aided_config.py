"""Arguments of what helps a sequence model: a robust loss (DROS), a teacher's lists and item text (DLLM2Rec)."""

from dataclasses import dataclass, field

from hf_rec.trainers.base_config import RecommenderConfig


@dataclass
class AidedConfig(RecommenderConfig):
    """
    What [`SequentialTrainer`] adds to the loss of a labelled position.

    Parameters:
        robust_weight (`float`, *optional*, defaults to `0.0`):
            Weight of the robust loss over all items (DROS), beside any `loss_type`; 0 for none.
        robust_radius (`float`, *optional*, defaults to `1.0`):
            What the errors of the robust loss are divided by (the paper's beta), greater than 0. The smaller, the more
            the largest error counts.
        robust_popularity_power (`float`, *optional*, defaults to `0.05`):
            The robust loss weighs the error of an item by its share of the training events to this power.
        teacher_lists (`str`, *optional*):
            Folder of ranked lists for training rows, written by `hf-rec recommend --data`. Each list teaches the label
            that stands after its history (DLLM2Rec).
        teacher_weight (`float`, *optional*, defaults to `0.8`):
            Weight of that lesson (the paper's lambda).
        teacher_top_k (`int`, *optional*, defaults to `10`):
            First items of each list that are used.
        position_weight (`float`, *optional*, defaults to `0.3`):
            How much a listed item counts by its place.
        confidence_weight (`float`, *optional*, defaults to `0.5`):
            How much it counts by the softmax of the teacher's scores over the list.
        consistency_weight (`float`, *optional*, defaults to `0.1`):
            How much it counts for being among the student's own best `teacher_top_k`.
        item_text_vectors (`str`, *optional*):
            `.npy` file of text vectors, row i is item i of the catalog. Projected, they are added to what the model
            reads of an item; scores do not see them.
        item_text_columns (`list[str]`, *optional*):
            Make such vectors from these columns of the catalog (TF-IDF and an SVD), e.g. `title`.
        text_weight (`float`, *optional*, defaults to `0.2`):
            Weight of the projected text vectors.
    """

    robust_weight: float = field(default=0.0, metadata={"help": "Weight of the robust loss (DROS)."})
    robust_radius: float = field(default=1.0, metadata={"help": "What errors of the robust loss are divided by."})
    robust_popularity_power: float = field(
        default=0.05, metadata={"help": "The robust loss weighs items by their share to this power."}
    )
    teacher_lists: str | None = field(
        default=None, metadata={"help": "Folder of ranked lists, written by `hf-rec recommend --data`."}
    )
    teacher_weight: float = field(default=0.8, metadata={"help": "Weight of what the lists teach."})
    teacher_top_k: int = field(default=10, metadata={"help": "First items of each list that are used."})
    position_weight: float = field(default=0.3, metadata={"help": "A listed item counts by its place."})
    confidence_weight: float = field(default=0.5, metadata={"help": "It counts by the teacher's score."})
    consistency_weight: float = field(default=0.1, metadata={"help": "It counts where the student lists it, too."})
    item_text_vectors: str | None = field(default=None, metadata={"help": ".npy file of text vectors of the items."})
    item_text_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns of the catalog to make text vectors from."}
    )
    text_weight: float = field(default=0.2, metadata={"help": "Weight of the projected text vectors."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            *("robust_weight", "robust_popularity_power", "teacher_weight", "position_weight"),
            *("confidence_weight", "consistency_weight", "text_weight"),
        ):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        if not self.robust_radius > 0:
            raise ValueError(
                f"`robust_radius` must be greater than 0, got {self.robust_radius}. A large value weighs all errors "
                "alike."
            )
        if self.teacher_top_k < 1:
            raise ValueError(f"`teacher_top_k` must be at least 1, got {self.teacher_top_k}.")
        if self.teacher_lists is not None and not (
            self.position_weight or self.confidence_weight or self.consistency_weight
        ):
            raise ValueError(
                "`teacher_lists` teach nothing while `position_weight`, `confidence_weight` and `consistency_weight` "
                "are 0."
            )
        if self.item_text_vectors is not None and self.item_text_columns is not None:
            raise ValueError("Give `item_text_vectors` or `item_text_columns`, not both.")
