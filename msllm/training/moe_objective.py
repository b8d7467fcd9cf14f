"""Training of mixture-of-experts models: a base objective, and what keeps the router even and its logits small."""

import dataclasses
import functools
import math

from mindspore import ops

from msllm.errors import UserError
from msllm.layers import moe_losses
from msllm.training.objective import CAUSAL_LM, Objective

_TERMS = ("balance_loss", "z_loss")  # in the order of moe_losses


def moe_objective(balance_weight: float = 0.01, z_weight: float = 0.001, base: Objective = CAUSAL_LM) -> Objective:
    """Returns base + balance_weight * load balancing + z_weight * z-loss, each a mean over the model's MoE layers.

    Args:
        balance_weight: alpha of Fedus et al. 2022, equation 4.
        z_weight: c_z of Zoph et al. 2022, equation 6.
        base: an objective of one loss, such as CAUSAL_LM or BLOCKS.

    The two are means over the tokens of a micro-batch, and every micro-batch counts the same. A weight of 0 leaves its
    term out.

    Raises:
        UserError: a negative weight; a base of several terms.
    """
    for name, value in (("balance_weight", balance_weight), ("z_weight", z_weight)):
        if not 0 <= value < math.inf:
            raise UserError(f"{name} is {value}, expected 0 or more, such as 0.01; change it")
    if len(base.terms) != 1:
        raise UserError(
            f"the base objective has the terms {', '.join(base.terms)}, expected one; give CAUSAL_LM or BLOCKS"
        )
    used = [(i, weight) for i, weight in enumerate((balance_weight, z_weight)) if weight > 0]
    if not used:
        return base
    indices = [i for i, _ in used]
    return dataclasses.replace(
        base,
        loss=functools.partial(_losses, base=base.loss, used=indices),
        layer_terms=functools.partial(_router, used=indices),
        to_device=functools.partial(_to_device, base=base.to_device, count=len(used)),
        terms=("lm_loss", *(_TERMS[i] for i in indices)),
        weights=(base.weights[0], *(weight for _, weight in used)),
    )


def with_router_losses(model, base: Objective) -> Objective:
    """Returns the objective that trains a model: ``base``, and with experts also router_aux_loss_coef * balancing."""
    weight = getattr(model.config, "router_aux_loss_coef", 0.0)
    return moe_objective(weight, 0.0, base) if weight else base


def _losses(model, tensors, base, used):
    """Returns the summed loss of the base, and this micro-batch's mean losses of the router: (1 + len(used),)."""
    return ops.concat([base(model, tensors).reshape(1), _router(model, used)])


def _router(model, used):
    losses = moe_losses(model)
    return ops.stack([losses[i] for i in used])


def _to_device(batch, base, count):
    tensors, targets = base(batch)
    return tensors, [targets, *[1] * count]
