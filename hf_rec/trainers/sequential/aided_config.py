"""Arguments by which a sequence model is helped by others: a robust loss (DROS)."""

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
    """

    robust_weight: float = field(default=0.0, metadata={"help": "Weight of the robust loss (DROS)."})
    robust_radius: float = field(default=1.0, metadata={"help": "What errors of the robust loss are divided by."})
    robust_popularity_power: float = field(
        default=0.05, metadata={"help": "The robust loss weighs items by their share to this power."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.robust_weight >= 0:
            raise ValueError(f"`robust_weight` must be at least 0, got {self.robust_weight}.")
        if not self.robust_radius > 0:
            raise ValueError(
                f"`robust_radius` must be greater than 0, got {self.robust_radius}. A large value weighs all errors "
                "alike."
            )
        if not self.robust_popularity_power >= 0:
            raise ValueError(
                f"`robust_popularity_power` must be at least 0, got {self.robust_popularity_power}: 0 weighs all "
                "items alike."
            )
