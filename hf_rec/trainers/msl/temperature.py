"""
The temperature of the masked softmax loss: fixed, or adapted once per optimizer step (MSL, section 4.2,
https://huggingface.co/papers/2504.04178).
"""

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_rec.losses.trie_softmax import adaptive_temperature


_NEARLY_ALWAYS = 0.9  # share of updates at a limit that is worth a word
_DECAY = 0.95  # of the running temperature, as in the released code


class RunningMoments:
    """
    Count, mean and sum of squared deviations of everything added, in float64; partial results merge exactly.

    Args:
        device (`torch.device`): Where the three numbers live.
    """

    def __init__(self, device: torch.device):
        self.values = torch.zeros(3, dtype=torch.float64, device=device)  # count, mean, squared deviations

    def add(self, values: Tensor) -> None:
        """Add every element of a tensor."""
        if values.numel():
            values = values.detach().to(self.values.device, torch.float64)
            mean = values.mean()
            count = torch.tensor(float(values.numel()), dtype=torch.float64, device=mean.device)
            self.merge(torch.stack([count, mean, (values - mean).square().sum()]))

    def merge(self, other: Tensor) -> None:
        """Merge the three numbers of another part of the data (`torch.Tensor` of shape `(3,)`)."""
        count, mean, deviations = self.values
        other_count, other_mean, other_deviations = other
        total = count + other_count
        shift = other_mean - mean
        share = other_count / total.clamp(min=1.0)
        merged = deviations + other_deviations + shift.square() * count * share
        self.values = torch.stack([total, mean + shift * share, merged])


class Temperature:
    """
    The running temperature. Optimizer step t uses the statistics of the steps before it, so that all micro-batches and
    processes of one step share one temperature.

    Args:
        tau (`float`): Fixed temperature, or the value before the first update.
        num_valid (`int`): Tokens that may start an item: the children of the trie's root.
        eta (`float`): Wanted probability of the positive, between 0 and 1.
        tau_min (`float`), tau_max (`float`): Limits of an update.
        device (`torch.device`): Where the statistics are summed.
    """

    def __init__(self, tau: float, num_valid: int, eta: float, tau_min: float, tau_max: float, device: torch.device):
        self.tau = tau
        self.num_valid = num_valid
        self.eta = eta
        self.tau_min = tau_min
        self.tau_max = tau_max
        # float64 does not exist on Apple's GPU
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.num_updates = 0
        self.num_clamped = 0
        self._totals = {"updates": 0, "tau_min": 0, "tau_max": 0}  # of the whole run, and at each limit
        self._reset()

    def _reset(self) -> None:
        self._positive = RunningMoments(self.device)
        self._valid = RunningMoments(self.device)

    def observe(self, positive: Tensor, valid: Tensor) -> None:
        """
        Add one micro-batch's logits at the first token of each item.

        Args:
            positive (`torch.Tensor` of shape `(R,)`): Logits of the targets.
            valid (`torch.Tensor` of shape `(R, num_valid)`): Logits of every token that may start an item.
        """
        self._positive.add(positive)
        self._valid.add(valid)

    def update(self, accelerator: Accelerator) -> None:
        """
        End an optimizer step: gather the statistics of all processes, move the running temperature once.

        A step in which no process saw the first token of an item leaves it as it is.

        Args:
            accelerator (`accelerate.Accelerator`): Gathers over processes.
        """
        both = torch.stack([self._positive.values, self._valid.values])
        if accelerator.num_processes > 1:
            parts = accelerator.gather(both[None].to(accelerator.device)).cpu()
            positive, valid = RunningMoments(parts.device), RunningMoments(parts.device)
            for part in parts:
                positive.merge(part[0])
                valid.merge(part[1])
            both = torch.stack([positive.values, valid.values])
        (num_positive, positive_mean, _), (num_logits, valid_mean, deviations) = both.tolist()
        self._reset()
        if num_positive == 0 or num_logits < 2:
            return
        variance = deviations / (num_logits - 1)
        tau = float(adaptive_temperature(positive_mean, valid_mean, variance, self.num_valid, self.eta, self.tau_max))
        clamped = min(max(tau, self.tau_min), self.tau_max)
        self.tau = _DECAY * self.tau + (1 - _DECAY) * clamped
        self.num_updates += 1
        self.num_clamped += tau <= self.tau_min or tau >= self.tau_max
        self._totals["updates"] += 1
        self._totals["tau_min"] += tau <= self.tau_min
        self._totals["tau_max"] += tau >= self.tau_max

    def pop_clamped_share(self) -> float | None:
        """Share of the updates since the last call that met a limit; `None` where there was no update."""
        share = self.num_clamped / self.num_updates if self.num_updates else None
        self.num_updates = self.num_clamped = 0
        return share

    def advice(self) -> str | None:
        """What to set where nearly every update of the run met a limit; `None` where the data decided."""
        met = {name: self._totals[name] for name in ("tau_min", "tau_max")}
        share = sum(met.values()) / max(self._totals["updates"], 1)
        if share < _NEARLY_ALWAYS:
            return None
        limit = max(met, key=lambda name: met[name])
        value = getattr(self, limit)
        return (
            f"`adaptive_tau`: {share:.0%} of the updates met a limit, mostly `{limit}` {value:g}, so that the limits "
            f"set the temperature and not the data. {'Lower' if limit == 'tau_min' else 'Raise'} `{limit}`, or fix "
            f"the temperature with `adaptive_tau=False, tau={value:g}`."
        )
