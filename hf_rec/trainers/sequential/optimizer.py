"""The optimizers of sequence models: Adam as published, decoupled decay, and one that touches few items a step."""

from typing import Any

import torch
from torch import nn

from hf_rec.trainers.item_ranking import ItemRankingTrainer
from hf_rec.trainers.sequential.lazy_adam import LazyAdam, clip_grad_norm


class AdamTrainer(ItemRankingTrainer):
    """Trainer with the optimizers of [`SequentialConfig`]."""

    optimizer: torch.optim.Optimizer | None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Adam with the decay in the gradient, as published; `lazy` and `decoupled` as [`SequentialConfig`] says."""
        args = self.args
        if self.optimizer is not None or (args.item_optimizer == "dense" and args.weight_decay_form == "decoupled"):
            return super().create_optimizer(model)
        kwargs = {
            "lr": args.learning_rate,
            "betas": (args.adam_beta1, args.adam_beta2),
            "eps": args.adam_epsilon,
            "weight_decay": args.weight_decay,
        }
        model = self.model if model is None else model
        if args.item_optimizer == "lazy":
            decayed = set(self.get_decay_parameter_names(model))
            named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
            groups = [
                {"params": [param for name, param in named if name in decayed]},
                {"params": [param for name, param in named if name not in decayed], "weight_decay": 0.0},
            ]
            self.optimizer = LazyAdam(groups, **kwargs)
        else:
            params = [param for param in model.parameters() if param.requires_grad]
            self.optimizer = torch.optim.Adam(params, **kwargs, fused=True)
        return self.optimizer

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.args.item_optimizer == "lazy":
            return clip_grad_norm(model.parameters(), self.args.max_grad_norm)
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        if self.args.item_optimizer == "lazy" and grad_norm is None:
            return clip_grad_norm(model.parameters(), float("inf"))
        return super()._get_grad_norm(model, grad_norm)
