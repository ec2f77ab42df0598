"""Arguments of `SequentialTrainer`."""

from dataclasses import dataclass, field
from typing import Literal

from hf_rec.evaluation.protocol import Seen
from hf_rec.trainers.sequential.aided_config import AidedConfig
from hf_rec.trainers.sequential.sampling import NegativePool


LossType = Literal["ce", "ce_tight", "sce", "ssm", "bce", "bpr", "nce", "neg"]
FULL_LOSSES = ("ce", "ce_tight")  # over all items; the others sample negatives


@dataclass
class SequentialConfig(AidedConfig):
    """
    Arguments of [`SequentialTrainer`], on top of those of [`AidedConfig`] (help from others) and of
    [`~transformers.TrainingArguments`], some of which have other defaults here: 512 rows a batch, Adam at a constant
    rate of 1e-3 without clipping, and selection by NDCG@10.

    Parameters:
        loss_type (`str`, *optional*, defaults to `"ce"`):
            `"ce"`: softmax over all items. `"sce"`: scaled cross-entropy over sampled ones. `"ssm"`: sampled softmax.
            `"ce_tight"`: softmax over the items that score near the target. `"bce"`, `"bpr"`, `"nce"`, `"neg"`:
            logistic losses.
        alpha (`float`, *optional*):
            Weight of each negative of `"sce"`, greater than 0. Default: items over negatives, which estimates the full
            softmax.
        num_negatives (`int`, *optional*):
            Negatives K of the sampled losses, at most the number of items. Default: 1 for `"bce"` and `"bpr"`, else
            500.
        reach (`float`, *optional*, defaults to `5.0`):
            How far below the target, in shares of its score, an item counts for `"ce_tight"` (the paper's eta).
        nce_c (`float`, *optional*, defaults to `10.0`):
            Log of the partition function of `"nce"`.
        share_negatives (`bool`, *optional*, defaults to `True`):
            Use one set of negatives for many positions of a step, scored by one matrix product. `False`: a set for
            each position, as published. In both, a negative that is the target of its position is left out.
        num_negative_sets (`int`, *optional*, defaults to `1`):
            Sets of shared negatives a step, among which its positions are dealt at random. More sets cost no more
            scores, but reach more items a step: the gradient of the item table is less noisy.
        negative_pool (`str`, *optional*, defaults to `"all"`):
            Where negatives that are not shared come from: `"all"` items, all but the target (`"non_target"`), or all
            but those of the row (`"unseen"`).
        popularity_power (`float`, *optional*, defaults to `0.0`):
            Draw negatives in proportion to the training count to this power; 0 draws evenly. From the pool `"all"`
            only.
        log_q_correction (`bool`, *optional*, defaults to `False`):
            Subtract the log of how often a negative is drawn (against even draws) from its score.
        supervise (`str`, *optional*, defaults to `"all"`):
            `"all"`: every event from `supervise_from` on is a label. `"last"`: the target of a row alone.
        samples (`str`, *optional*, defaults to `"auto"`):
            `"sequences"`: a sample is a row, trained at all positions at once; for causal models. `"prefixes"`: a
            sample is a label and all before it. `"auto"`: `"sequences"` for causal models. BERT4Rec masks rows
            instead.
        shortest_prefix (`int`, *optional*, defaults to `1`):
            Fewest events before the label of a prefix; where a row has no such prefix, its longest is the sample. The
            SCE paper's Caser: 4.
        mask_ratio (`float`, *optional*, defaults to `0.2`):
            Share of events that BERT4Rec has to fill in.
        last_mask_ratio (`float`, *optional*, defaults to `0.0`):
            Share of rows of which BERT4Rec fills in the newest event alone, as it does when ranking.
        weight_decay_form (`str`, *optional*, defaults to `"l2"`):
            `"l2"`: Adam with the decay in the gradient of all weights, as published. `"decoupled"`: the optimizer
            named by `optim` (AdamW unless told otherwise), no decay on biases and norms.
        item_optimizer (`str`, *optional*, defaults to `"dense"`):
            `"lazy"`: Adam that touches only the item rows of a step. With sampled, shared negatives in one process.
        seen (`str`, *optional*, defaults to `"keep"`):
            `"keep"`: validation ranks all items, also those of the history. `"mask"`: it leaves these out.
    """

    per_device_train_batch_size: int = field(default=512, metadata={"help": "Rows of a batch."})
    per_device_eval_batch_size: int = field(default=512, metadata={"help": "Rows ranked at a time."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Learning rate of Adam."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of the learning rate."})
    num_train_epochs: float = field(default=200, metadata={"help": "Passes over the training rows."})
    max_grad_norm: float = field(
        default=0.0, metadata={"help": "Norm that gradients are clipped to; 0 for no clipping."}
    )
    metric_for_best_model: str | None = field(default="ndcg@10", metadata={"help": "Metric that selects the model."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Every weight is used."})

    loss_type: LossType = field(default="ce", metadata={"help": "Loss of a labelled position."})
    alpha: float | None = field(default=None, metadata={"help": "Weight of a negative of sce; default N / K."})
    num_negatives: int | None = field(
        default=None, metadata={"help": "Negatives K; default 1 for bce, bpr, else 500."}
    )
    reach: float = field(default=5.0, metadata={"help": "How far below the target ce_tight looks."})
    nce_c: float = field(default=10.0, metadata={"help": "Log of the partition function of nce."})
    share_negatives: bool = field(default=True, metadata={"help": "Negatives for many positions, or for each."})
    num_negative_sets: int = field(default=1, metadata={"help": "Sets of shared negatives a step."})
    negative_pool: NegativePool = field(
        default="all", metadata={"help": "What a position draws from; 'all' where negatives are shared."}
    )
    popularity_power: float = field(default=0.0, metadata={"help": "Draw negatives by count to this power."})
    log_q_correction: bool = field(default=False, metadata={"help": "Correct scores for how often they are drawn."})
    supervise: Literal["all", "last"] = field(
        default="all", metadata={"help": "All events are labels, or the last one of a row."}
    )
    samples: Literal["auto", "sequences", "prefixes"] = field(
        default="auto", metadata={"help": "What a sample is; 'auto' goes by the model."}
    )
    shortest_prefix: int = field(default=1, metadata={"help": "Fewest events before the label of a prefix."})
    mask_ratio: float = field(default=0.2, metadata={"help": "Share of events BERT4Rec fills in."})
    last_mask_ratio: float = field(default=0.0, metadata={"help": "Share of rows with the newest event alone masked."})
    weight_decay_form: Literal["l2", "decoupled"] = field(
        default="l2", metadata={"help": "In the gradient (Adam), or as `optim` says."}
    )
    item_optimizer: Literal["dense", "lazy"] = field(
        default="dense", metadata={"help": "'lazy' touches only the item rows of a step."}
    )
    seen: Seen = field(default="keep", metadata={"help": "Validation: rank items of the history, or leave them out."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(
                f"`alpha` must be greater than 0, got {self.alpha}. Leave it out for items over negatives."
            )
        for name in ("num_negatives", "num_negative_sets", "shortest_prefix"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}. Leave it out for the default.")
        if not self.reach >= 0:
            raise ValueError(f"`reach` must be at least 0, got {self.reach}.")
        for name in ("mask_ratio", "last_mask_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be between 0 and 1, got {getattr(self, name)}.")
        self._check_negatives()
        if self.item_optimizer == "lazy":
            self._check_lazy_optimizer()

    def _check_negatives(self) -> None:
        if self.num_negative_sets > 1 and not self.share_negatives:
            raise ValueError(
                f"`num_negative_sets` must be 1 with `share_negatives=False`, got {self.num_negative_sets}: each "
                "position has a set of its own."
            )
        if self.share_negatives and self.negative_pool != "all":
            raise ValueError(
                f"`negative_pool` must be 'all' with `share_negatives=True`, got {self.negative_pool!r}: what one row "
                "has seen, another has not. Set `share_negatives=False`."
            )
        if self.popularity_power and self.negative_pool != "all":
            raise ValueError(f"`popularity_power` needs `negative_pool='all'`, got {self.negative_pool!r}.")
        if self.log_q_correction and not self.popularity_power:
            raise ValueError(
                "`log_q_correction` corrects nothing while `popularity_power` is 0: negatives are drawn evenly."
            )

    def _check_lazy_optimizer(self) -> None:
        if self.robust_weight:
            raise ValueError(
                f"`item_optimizer='lazy'` touches few items a step, `robust_weight` {self.robust_weight} all of them. "
                "Use 'dense'."
            )
        if self.loss_type in FULL_LOSSES or not self.share_negatives:
            raise ValueError(
                "`item_optimizer='lazy'` needs a loss that samples negatives, and `share_negatives=True`, got "
                f"`loss_type={self.loss_type!r}` and `share_negatives={self.share_negatives}`: a step would touch too "
                "many rows of the item table."
            )
        if self.weight_decay_form != "decoupled" and self.weight_decay:
            raise ValueError(
                "`item_optimizer='lazy'` decays rows when they are touched, apart from their gradient: set "
                "`weight_decay_form='decoupled'`, or `weight_decay` to 0."
            )

    @property
    def effective_num_negatives(self) -> int:
        """`num_negatives`, or its default for the loss."""
        if self.num_negatives is not None:
            return self.num_negatives
        return 1 if self.loss_type in ("bce", "bpr") else 500
