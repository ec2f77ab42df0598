"""
Teach a causal LM to judge candidates with one token: TALLRec (`form: yes_no`, on ratings) and LlamaRec (`form:
letters`, on what a retriever lists).

accelerate launch --config_file accelerate_configs/cpu.yaml recipes/rerank.py \
    --config recipes/configs/rerank/ml-100k_tallrec_tiny.yaml

A run that was cut off goes on from its last checkpoint with `--resume_from_checkpoint last`.
"""

import shutil
import sys
from dataclasses import dataclass, field

from trl import ModelConfig, get_peft_config, get_quantization_config

from hf_rec import RerankConfig, RerankTrainer
from hf_rec.arguments import DataArguments, loading_options, run_recipe, select_rows
from hf_rec.data.prepare import load_prepared
from hf_rec.data.ratings import few_shot
from hf_rec.data.splits import seen_items
from hf_rec.diagnostics.position_bias import position_bias, write_position_bias
from hf_rec.evaluation.full import evaluate_recommender
from hf_rec.evaluation.preferences import evaluate_preferences
from hf_rec.trainers.training_run import print_result, train_and_save


@dataclass
class CandidateArguments:
    """Where candidates and shots come from."""

    retriever: str | None = field(
        default=None, metadata={"help": "Folder of the recommender that lists candidates, for `form: letters`."}
    )
    sequence_model: str | None = field(
        default=None, metadata={"help": "Folder of the sequence model that collaborative tokens show (CoLLM)."}
    )
    num_shots: int | None = field(
        default=None, metadata={"help": "Train on this many rows, drawn by `seed`, for `yes_no`."}
    )


def main(
    data_args: DataArguments,
    training_args: RerankConfig,
    model_args: ModelConfig,
    candidate_args: CandidateArguments,
) -> None:
    # 1. Items and users
    catalog, splits, card = load_prepared(data_args.data_dir)
    train = select_rows(splits[data_args.train_split], data_args.max_train_samples)
    if candidate_args.num_shots is not None:
        train = few_shot(train, candidate_args.num_shots, training_args.seed)

    # 2. Train: a folder brings weights or adapter, tokenizer and, from a re-ranker, its prompt
    training_args.model_init_kwargs = loading_options(model_args, training_args.model_init_kwargs)
    trainer = RerankTrainer(
        model_args.model_name_or_path,
        training_args,
        train_dataset=train,
        eval_dataset=select_rows(splits[data_args.eval_split], data_args.max_eval_samples),
        catalog=catalog,
        retriever=candidate_args.retriever,
        sequence_model=candidate_args.sequence_model,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    cost = train_and_save(
        trainer, training_rows=len(trainer.train_dataset), distinct_labels=len(trainer.train_dataset)
    )

    # 3. Measure on the test rows, once
    if training_args.do_predict:
        test = select_rows(splits[data_args.test_split], data_args.max_test_samples)
        out = f"{training_args.output_dir}/{data_args.test_split}"
        described = {
            "split": data_args.test_split,
            "split_rule": card["split"]["rule"],
            "name": training_args.run_name or f"re-ranked, {training_args.form}",
            "cost": cost,
        }
        with trainer.whole_weights():
            if training_args.form == "yes_no":
                result = evaluate_preferences(trainer.reranker(), test, out, **described)
            else:
                recommender, seen = trainer.recommender(), training_args.seen
                result = evaluate_recommender(
                    recommender, test, out, seen=seen, warm_items=seen_items(train), **described
                )
                retrieved = described | {"name": "its retriever", "cost": None, "warm_items": seen_items(train)}
                evaluate_recommender(recommender.retriever, test, f"{out}_retriever", seen=seen, **retrieved)
                bias = position_bias(recommender, test, seen)
        if trainer.is_world_process_zero() and training_args.form == "letters":
            write_position_bias(bias, out)
            shutil.rmtree(f"{training_args.output_dir}/reranked", ignore_errors=True)  # of an earlier run
            recommender.save(f"{training_args.output_dir}/reranked")
        print_result(result, training_args.output_dir, out, reports=training_args.form == "letters")


if __name__ == "__main__":
    sys.exit(run_recipe(main))
