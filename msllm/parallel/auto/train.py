"""One optimiser step as one graph: forward, backward, and AdamW on whatever part of the parameters a card has.

Logically it is one card's program over the whole batch; MindSpore's auto-parallel makes each card's part of it.
"""

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from msllm.parallel.auto.cuts import DATA, Cuts

DECAYED_DIMENSIONS = 2


class BlockLoss(nn.Cell):
    """The summed loss of next tokens in blocks: see training.losses.causal_lm_loss."""

    def __init__(self, model, cuts: Cuts):
        super().__init__()
        self.model, self.sum = model, cuts(ops.ReduceSum(), (DATA,))

    def construct(self, input_ids, targets):
        """input_ids int32 (B, T), targets int32 (B, T) -> float32 scalar."""
        logits = self.model(input_ids)
        losses = self.model.cross_entropy(ops.reshape(logits, (-1, logits.shape[-1])), ops.reshape(targets, (-1,)))
        return self.sum(losses, ())


class AdamW(nn.Cell):
    """AdamW in a graph (Loshchilov and Hutter 2019, algorithm 2), after clipping by the norm of all gradients.

    The moments are clones of the parameters, so that MindSpore cuts them alike.

    Args:
        parameters: those that are trained.
        betas, epsilon, weight_decay: as in training.optimizer; biases and norms are not decayed.
        max_grad_norm: 0 turns clipping off.
        uncounted: names of parameters whose gradients the norm leaves out: another card counts them.
    """

    def __init__(
        self,
        parameters: ParameterTuple,
        betas,
        epsilon: float,
        weight_decay: float,
        max_grad_norm: float,
        uncounted: tuple[str, ...] = (),
    ):
        super().__init__(auto_prefix=False)
        self.parameters = parameters
        self.counted = tuple(p.name not in uncounted for p in parameters)
        self.exp_avg = parameters.clone(prefix="exp_avg", init="zeros")
        self.exp_avg_sq = parameters.clone(prefix="exp_avg_sq", init="zeros")
        self.beta1, self.beta2 = betas
        self.epsilon, self.max_grad_norm = epsilon, max_grad_norm
        self.weight_decay = weight_decay
        self.decayed = tuple(len(p.shape) >= DECAYED_DIMENSIONS for p in parameters)
        self.step = Parameter(Tensor(0.0, ms.float32), name="optimizer_step")
        self.map, self.root, self.add = ops.HyperMap(), ops.Sqrt(), ops.AddN()

    def construct(self, gradients, learning_rate):
        """gradients: a tuple as ``parameters``; learning_rate: float32 scalar. Returns the norm of all gradients."""
        norm = self.root(self.add(self.map(_sum_of_squares, self.of_norm(gradients))))  # (1,)
        clip = ops.ones_like(norm)
        if self.max_grad_norm > 0:
            clip = ops.minimum(clip, self.max_grad_norm / (norm + 1e-6))
        step = self.step + 1.0
        rate, correction = learning_rate / (1.0 - self.beta1**step), 1.0 - self.beta2**step
        stepped = ops.assign(self.step, step)
        shrink = (1.0 - learning_rate * self.weight_decay, ops.ones_like(learning_rate))
        shrinks = ()
        for decayed in self.decayed:
            shrinks += (shrink[0] if decayed else shrink[1],)
        update = ops.partial(_adamw, self.beta1, self.beta2, self.epsilon, clip, rate, correction)
        done = self.map(update, shrinks, self.parameters, self.exp_avg, self.exp_avg_sq, gradients)
        return ops.depend(norm, (stepped, done))

    def of_norm(self, gradients):
        """Those that the norm counts."""
        if all(self.counted):
            return gradients
        found = ()
        for i in range(len(gradients)):
            if self.counted[i]:
                found += (gradients[i],)
        return found


# By this attribute auto-parallel knows a sum of squares: it divides it by the cards that have the same numbers and sums
# it over those that have others.
_mark = ops.ExpandDims().add_prim_attr("grad_scale", True)
_square, _sum = ops.Square(), ops.ReduceSum()
_sum_of_squares = ops.MultitypeFuncGraph("sum_of_squares")
_adamw = ops.MultitypeFuncGraph("adamw")


@_sum_of_squares.register("Tensor")
def _sum_of_squares_of(gradient):
    return _mark(_sum(_square(gradient), ()), 0)


@_adamw.register(*("Number",) * 3, *("Tensor",) * 8)
def _adamw_of(beta1, beta2, epsilon, clip, rate, correction, shrink, parameter, mean, square, gradient):
    gradient = gradient * clip
    mean_now = mean * beta1 + gradient * (1.0 - beta1)
    square_now = square * beta2 + gradient * gradient * (1.0 - beta2)
    new = parameter * shrink - rate * (mean_now / (ops.sqrt(square_now / correction) + epsilon))
    return ops.assign(mean, mean_now), ops.assign(square, square_now), ops.assign(parameter, new)


class TrainStep(nn.Cell):
    """Forward and backward pass and the update.

    Args:
        loss: a cell (input_ids, targets) -> the sum of the losses, or a PipelineCell or GradAccumulationCell of one.
        optimizer: an AdamW.
        accumulates: whether ``loss`` is one of the latter two.

    Attributes:
        scale, learning_rate: Parameters, float32 scalars: 1 / number of targets, and the rate; set before each step. As
            inputs of the graph they would be taken for data.
    """

    def __init__(self, loss: nn.Cell, optimizer: AdamW, accumulates: bool):
        super().__init__(auto_prefix=False)
        self.loss, self.optimizer = loss, optimizer
        self.weights = optimizer.parameters
        self.scale = Parameter(Tensor(1.0, ms.float32), name="scale", requires_grad=False)
        self.learning_rate = Parameter(Tensor(0.0, ms.float32), name="learning_rate", requires_grad=False)
        self.gradient = ops.GradOperation(get_by_list=True, sens_param=True)
        self.reducer = nn.PipelineGradReducer(self.weights) if accumulates else nn.Identity()

    def construct(self, input_ids, targets):
        """input_ids and targets int32 (B, T) -> (mean loss, norm of the gradients before clipping (1,))."""
        loss = self.loss(input_ids, targets)
        gradients = self.gradient(self.loss, self.weights)(input_ids, targets, self.scale)
        norm = self.optimizer(self.reducer(gradients), self.learning_rate)
        return loss * self.scale, norm
