"""
Rank the next item above drawn ones, relative to the model it starts from: S-DPO on an MSL or SFT folder.

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/softmax_dpo.py \
    --config recipes/configs/softmax_dpo/books_tiny.yaml

With `--negatives own_lists --num_rounds 3` it is self-play: in each round the lists of the model are what is rejected.
A run that was cut off goes on from its last checkpoint with `--resume_from_checkpoint last`.
"""

import sys
from contextlib import nullcontext
from dataclasses import dataclass, field

from trl import ModelConfig, get_peft_config, get_quantization_config

from hf_rec import SoftmaxDPOConfig, SoftmaxDPOTrainer, load_recommender
from hf_rec.arguments import DataArguments, loading_options, run_recipe, select_rows
from hf_rec.data.prepare import load_prepared
from hf_rec.data.splits import seen_items
from hf_rec.evaluation.cost import measured_cost
from hf_rec.trainers.softmax_dpo.self_play import train_rounds
from hf_rec.trainers.training_run import rank_test_rows, train_and_save


@dataclass
class CandidateArguments:
    """Rankings among few candidates, beside the full one."""

    num_candidates: list[int] = field(
        default_factory=lambda: [19, 99], metadata={"help": "Drawn items beside the target, one number a ranking."}
    )


@dataclass
class SelfPlayArguments:
    """Rounds of training."""

    num_rounds: int = field(
        default=1, metadata={"help": "For `--negatives own_lists`: trainings, with new lists each."}
    )


def main(
    data_args: DataArguments,
    training_args: SoftmaxDPOConfig,
    model_args: ModelConfig,
    candidate_args: CandidateArguments,
    self_play_args: SelfPlayArguments,
) -> None:
    # 1. Items and users
    catalog, splits, card = load_prepared(data_args.data_dir)
    train = select_rows(splits[data_args.train_split], data_args.max_train_samples)
    validation = select_rows(splits[data_args.eval_split], data_args.max_eval_samples)

    # 2. Train: the folder brings weights or adapter, tokenizer, prompt, trie and temperature
    training_args.model_init_kwargs = loading_options(model_args, training_args.model_init_kwargs)
    given = {
        "args": training_args,
        "train_dataset": train,
        "eval_dataset": validation,
        "catalog": catalog,
        "quantization_config": get_quantization_config(model_args),
        "peft_config": get_peft_config(model_args),
    }
    known = {"training_rows": len(train), "distinct_labels": len(train)}
    if training_args.negatives == "own_lists" or self_play_args.num_rounds != 1:
        trainer, cost = train_rounds(
            model_args.model_name_or_path, num_rounds=self_play_args.num_rounds, known_cost=known, **given
        )
    else:
        with measured_cost() as making:  # the reference may run over all rows here
            trainer = SoftmaxDPOTrainer(model_args.model_name_or_path, **given)
        cost = train_and_save(trainer, seconds_before=making["seconds"], **known)

    # 3. Rank the test rows, once: among all items, and among few
    if training_args.do_predict:
        with nullcontext() if trainer is None else trainer.whole_weights():
            if trainer is None:  # nothing was left to train
                recommender = load_recommender(training_args.output_dir, device=training_args.device)
            else:
                recommender = trainer.recommender()
            rank_test_rows(
                recommender,
                select_rows(splits[data_args.test_split], data_args.max_test_samples),
                training_args.output_dir,
                split=data_args.test_split,
                split_rule=card["split"]["rule"],
                seen=training_args.seen,
                name=training_args.run_name or f"S-DPO, K={training_args.num_negatives}",
                warm_items=seen_items(train),
                cost=cost,
                num_candidates=candidate_args.num_candidates,
            )


if __name__ == "__main__":
    sys.exit(run_recipe(main))
