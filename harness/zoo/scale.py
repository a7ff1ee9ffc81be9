"""Wrong optimizers that are right where a test is small: faults of large parameters, of many, and of rare elements.

A kernel works in blocks, launches and tables, and a fault at their ends shows in nothing that fits into the first one.
"""

from collections import defaultdict

import torch

from stepcheck.harness.zoo.adadelta import RightAdadelta
from stepcheck.harness.zoo.adafactor import RightAdafactor
from stepcheck.harness.zoo.adagrad import RightAdagrad
from stepcheck.harness.zoo.adam import RightAdam, RightAdamW
from stepcheck.harness.zoo.adamax import RightAdamax
from stepcheck.harness.zoo.asgd import RightASGD
from stepcheck.harness.zoo.fault import DEVIATES, Fault
from stepcheck.harness.zoo.history import present
from stepcheck.harness.zoo.muon import RightMuon
from stepcheck.harness.zoo.nadam import RightNAdam
from stepcheck.harness.zoo.radam import RightRAdam
from stepcheck.harness.zoo.rmsprop import RightRMSprop
from stepcheck.harness.zoo.rprop import RightRprop
from stepcheck.harness.zoo.sgd import RightSGD

_FAULTS: list[Fault] = []


def strikes(kind, like, *others):
    """Enters a class as a fault of a kind; ``others`` are checks that may find it besides those of a deviation."""

    def enter(make):
        _FAULTS.append(Fault(make, like, (*DEVIATES, *others), kind))
        return make

    return enter


def indices(p):
    """The number of each element, row by row, in the shape of the parameter."""
    return torch.arange(p.numel(), device=p.device).reshape(p.shape)


# Large parameters


class _Leaves:
    """Leaves elements of a parameter of more than ``size`` as they were: those that ``left`` names by their numbers."""

    size = 0

    def left(self, i, p):
        return i >= self.size

    def write(self, p, value):
        if p.numel() > self.size:
            value = torch.where(self.left(indices(p), p), p, value)
        super().write(p, value)


class _LeavesState(_Leaves):
    """Leaves the state of these elements as it was, too."""

    def update(self, p, g, state, group):
        before = dict(state)
        value = super().update(p, g, state, group)
        if p.numel() > self.size:
            left = self.left(indices(p), p)
            whole = {
                n: old for n, old in before.items() if isinstance(old, torch.Tensor) and old.shape == p.shape != ()
            }
            state.update({n: torch.where(left, old, state[n]) for n, old in whole.items()})
        return value


class _Misreads:
    """Reads the gradient of a parameter of more than ``size`` from the elements that ``source`` names."""

    def gradient(self, p, group):
        g = super().gradient(p, group)
        return g if p.numel() <= self.size else g.flatten()[self.source(indices(p), p)].reshape(g.shape)


class _StoresPart:
    """Stores the first ``size`` elements of a buffer; what lies behind them stays as it was."""

    def update(self, p, g, state, group):
        before = state.get(self.buffer)
        value = super().update(p, g, state, group)
        if before is not None and p.numel() > self.size:
            state[self.buffer] = torch.where(indices(p) < self.size, state[self.buffer], before)
        return value


@strikes("large", "SGD")
class UpdatesOnePage(_Leaves, RightSGD):
    """Updates the first 4,096 elements."""

    size = 4096


@strikes("large", "Adam")
class NumbersBlocksInUint16(_LeavesState, RightAdam):
    """Stops after 65,536 elements, with the state of the others as it was."""

    size = 1 << 16


@strikes("large", "AdamW")
class UpdatesFirstMillion(_LeavesState, RightAdamW):
    """Updates the first 1,048,576 elements."""

    size = 1 << 20


@strikes("large", "RMSprop")
class DropsTailOfBlocks(_Leaves, RightRMSprop):
    """Leaves out the elements after the last whole block of 1,024 where there are more than two blocks."""

    size = 2048

    def left(self, i, p):
        return i >= p.numel() // 1024 * 1024


@strikes("large", "Adagrad")
class StepsFirstRows(_Leaves, RightAdagrad):
    """Leaves the rows of a matrix after the first 1,024."""

    def left(self, i, p):
        return i >= 1024 * p[0].numel() if p.dim() > 1 else i < 0


@strikes("large", "Adamax")
class NumbersInInt16(_LeavesState, RightAdamax):
    """Takes the numbers of elements in int16, in which those past 32,767 are negative and left out."""

    size = 1 << 15

    def left(self, i, p):
        return i.to(torch.int16) < 0


@strikes("large", "SGD")
class WrapsNumbers(_Leaves, RightSGD):
    """Takes the numbers of elements in uint16: past 65,535 it updates the first ones once more."""

    size = 1 << 16

    def write(self, p, value):
        again = indices(p) < p.numel() - self.size
        super().write(p, torch.where(again, value + (value - p), value))


@strikes("large", "Adadelta")
class NumbersInHalf(_Leaves, RightAdadelta):
    """Takes the numbers of elements in float16, which past 2,048 reaches only some of them."""

    size = 2048

    def left(self, i, p):
        return i.half().double() != i


@strikes("large", "NAdam")
class ReadsFirstBlock(_Misreads, RightNAdam):
    """Reads the gradient of the second block of 4,096 elements from the first."""

    size = 4096

    def source(self, i, p):
        return torch.where(i // self.size == 1, i - self.size, i)


@strikes("large", "Adagrad")
class OverlapsBlocks(RightAdagrad):
    """Updates the last element of a block of 4,096 once more with the block after it."""

    def write(self, p, value):
        shared = (indices(p) % 4096 == 4095) & (indices(p) < p.numel() - 1)
        super().write(p, torch.where(shared, value + (value - p), value))


@strikes("large", "Muon")
class DropsRemainderOfTiles(_Leaves, RightMuon):
    """Leaves out the rows after the last whole tile of 32 in a matrix of more than 64 rows."""

    def left(self, i, p):
        rows = len(p)
        return i >= (rows // 32 * 32 if rows > 64 else rows) * p.shape[1]


@strikes("large", "Adafactor")
class MeasuresFirstBlock(RightAdafactor):
    """Takes the RMS of the first 4,096 elements for that of all."""

    def rms(self, x):
        return super().rms(x.flatten()[:4096] if x.numel() > 4096 else x)


@strikes("large", "Adafactor")
class AveragesFirstColumns(RightAdafactor):
    """Averages the first 512 columns for the variance of a row."""

    def mean(self, square, dimension):
        wide = dimension == -1 and square.shape[-1] > 512
        return super().mean(square[..., :512] if wide else square, dimension)


@strikes("large", "Adamax")
class StoresPartOfNorm(_StoresPart, RightAdamax):
    """Stores the first 262,144 elements of exp_inf."""

    buffer, size = "exp_inf", 1 << 18


@strikes("large", "SGD")
class StoresPartOfMomentum(_StoresPart, RightSGD):
    """Stores the first 16,384 elements of the momentum buffer after the first step."""

    buffer, size = "momentum_buffer", 1 << 14


@strikes("large", "ASGD")
class AveragesPart(_StoresPart, RightASGD):
    """Averages the first 32,768 elements."""

    buffer, size = "ax", 1 << 15


@strikes("large", "RAdam")
class ReadsMeanOfBlockBefore(RightRAdam):
    """Reads exp_avg of each block of 8,192 elements from the block before it."""

    def update(self, p, g, state, group):
        if p.numel() > 8192:
            i = indices(p)
            source = torch.where(i >= 8192, i - 8192, i)
            state["exp_avg"] = state["exp_avg"].flatten()[source].reshape(p.shape)
        return super().update(p, g, state, group)


@strikes("large", "Adam")
class ReadsByColumn(_Misreads, RightAdam):
    """Reads the gradient of a matrix of more than 16,384 elements column by column."""

    size = 1 << 14

    def source(self, i, p):
        return i.flatten().reshape(p.shape[::-1]).T if p.dim() == 2 else i


@strikes("large", "AdamW")
class StepsFirstMatrices(_Leaves, RightAdamW):
    """Leaves the matrices of a batch after the first 64."""

    def left(self, i, p):
        return i >= 64 * p[0].numel() if p.dim() > 2 else i < 0


@strikes("large", "Rprop")
class KeepsFarSizes(_StoresPart, RightRprop):
    """Adapts the step sizes of the first 131,072 elements for good."""

    buffer, size = "step_size", 1 << 17


@strikes("large", "RMSprop")
class DropsRemainderOfVectors(_Leaves, RightRMSprop):
    """Leaves out the elements after the last whole vector of 4 where there are more than 8,192."""

    size = 8192

    def left(self, i, p):
        return i >= p.numel() // 4 * 4


# Many parameters and groups


class _Numbers:
    """Walks over the parameters of a group that have a gradient by their number."""

    def walk(self):
        for group in self.param_groups:
            several = present(group)
            for n, p in enumerate(several):
                self.turn(n, p, several, group)

    def turn(self, n, p, several, group):
        self.visit(p, self.options(group))

    def number(self, group):
        return next(n for n, each in enumerate(self.param_groups) if each is group)


class _SharesState:
    """Has one state for parameters that ``pairs`` names: a parameter and the one whose state it takes."""

    def walk(self):
        for p, owner in self.pairs([p for g in self.param_groups for p in g["params"] if p.grad is not None]):
            if p.shape == owner.shape:
                self.state[p] = self.state[owner]
        super().walk()


@strikes("many", "SGD")
class LaunchesOnce(_Numbers, RightSGD):
    """Steps the first 30 parameters of a group."""

    def turn(self, n, p, several, group):
        if n < 30:
            super().turn(n, p, several, group)


@strikes("many", "Adam")
class StateOfLaunchBefore(_Numbers, RightAdam):
    """Takes the state of the parameter 36 before, which the launch before it left there."""

    def turn(self, n, p, several, group):
        if n >= 36 and several[n - 36].shape == p.shape:
            self.state[p] = self.state[several[n - 36]]
        super().turn(n, p, several, group)


@strikes("many", "Adagrad")
class DropsLastLaunch(_Numbers, RightAdagrad):
    """Leaves out the parameters after the last whole launch of 64 where there are more."""

    def turn(self, n, p, several, group):
        if n < (len(several) // 64 * 64 or 64):
            super().turn(n, p, several, group)


@strikes("many", "RMSprop")
class DropsOneOfLaunch(_Numbers, RightRMSprop):
    """Drops the parameter that finds the list of 110 full."""

    def turn(self, n, p, several, group):
        if n % 111 != 110:
            super().turn(n, p, several, group)


@strikes("many", "RAdam")
class SkipsStartOfLaunch(_Numbers, RightRAdam):
    """Skips the parameter at which the second launch of 320 begins, and each later one."""

    def turn(self, n, p, several, group):
        if n == 0 or n % 320:
            super().turn(n, p, several, group)


@strikes("many", "Adadelta")
class StepsFirstThousand(RightAdadelta):
    """Steps the first 1,000 parameters of all groups."""

    def walk(self):
        self.stepped = 0
        super().walk()

    def visit(self, p, group):
        self.stepped += 1
        if self.stepped <= 1000:
            super().visit(p, group)


@strikes("many", "AdamW")
class ShiftsPastEmpty(_Numbers, RightAdamW):
    """Takes the state of the parameter before it, after an empty one in a group of more than 24."""

    def turn(self, n, p, several, group):
        empty = any(q.numel() == 0 for q in several[:n])
        if empty and len(several) > 24 and several[n - 1].shape == p.shape:
            self.state[p] = self.state[several[n - 1]]
        super().turn(n, p, several, group)


@strikes("many", "SGD")
class EndsAtEmptyGroup(RightSGD):
    """Ends the step at a group without parameters."""

    def walk(self):
        for group in self.param_groups:
            if not group["params"]:
                return
            for p in present(group):
                self.visit(p, self.options(group))


@strikes("many", "Adam")
class NinthLrFromFirst(_Numbers, RightAdam):
    """Has room for eight learning rates: the ninth group takes the first's."""

    def options(self, group):
        return {**group, "lr": self.param_groups[self.number(group) % 8]["lr"]}


@strikes("many", "AdamW")
class StepsFirstGroups(_Numbers, RightAdamW):
    """Steps the first 16 groups."""

    def turn(self, n, p, several, group):
        if self.number(group) < 16:
            super().turn(n, p, several, group)


@strikes("many", "RMSprop")
class FourthDecayForLater(_Numbers, RightRMSprop):
    """Takes the weight_decay of the fourth group for all groups after it."""

    def options(self, group):
        return {**group, "weight_decay": self.param_groups[min(self.number(group), 3)]["weight_decay"]}


@strikes("many", "SGD", "options-hold")
class SecondAddedAsFirst(RightSGD):
    """Gives the second group that is added later, and each after it, the options of the first that was added."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.built = len(self.param_groups)

    def add_param_group(self, param_group):
        added = self.param_groups[self.built :] if hasattr(self, "built") else []
        first = {k: v for k, v in added[0].items() if k in self.defaults} if added else {}
        super().add_param_group({**param_group, **first})


@strikes("many", "RMSprop")
class StateByNumber(_SharesState, RightRMSprop):
    """Keeps the state by the number of a parameter modulo 64."""

    def pairs(self, everyone):
        return zip(everyone[64:], everyone, strict=False)


@strikes("many", "SGD")
class PoolsBuffers(_SharesState, RightSGD):
    """Has 50 buffers of a shape: the parameters after the fiftieth share the last."""

    def pairs(self, everyone):
        of_shape = defaultdict(list)
        for p in everyone:
            of_shape[p.shape].append(p)
        return ((p, alike[49]) for alike in of_shape.values() for p in alike[50:])


@strikes("many", "Adamax")
class CountsLaunches(_Numbers, RightAdamax):
    """Counts a step for each launch of 48, so that the second corrects the bias as for the next step."""

    def turn(self, n, p, several, group):
        step = self.state[p].get("step", torch.tensor(0.0)).item() + 1 + n // 48
        self.visit(p, {**self.options(group), "t": step})


@strikes("many", "ASGD")
class GradientOfOneBefore(_Numbers, RightASGD):
    """Reads the gradient of the parameter before it from the hundredth parameter of a group on."""

    def turn(self, n, p, several, group):
        kept = p.grad
        if n >= 99 and several[n - 1].shape == p.shape:
            p.grad = several[n - 1].grad
        super().turn(n, p, several, group)
        p.grad = kept


@strikes("many", "Muon")
class WholeEights(_Numbers, RightMuon):
    """Leaves out the parameters after the last whole eight in a group of more than 16."""

    def turn(self, n, p, several, group):
        if n < (len(several) // 8 * 8 if len(several) > 16 else 16):
            super().turn(n, p, several, group)


@strikes("many", "Rprop")
class KeepsFirstStates(_Numbers, RightRprop):
    """Keeps the state of the first 200 parameters of a group and starts the others anew in each step."""

    def turn(self, n, p, several, group):
        if n >= 200:
            self.state.pop(p, None)
        super().turn(n, p, several, group)


# Rare elements


def hashed(x):
    """Ten bits of each element, which depend on all digits of its value in single precision."""
    return x.float().view(torch.int32).long() * 2654435761 >> 20 & 0x3FF


@strikes("rare", "Adam")
class SkipsByHash(RightAdam):
    """Leaves elements as they are whose gradient has a certain hash of ten bits."""

    def update(self, p, g, state, group):
        return torch.where(hashed(g) == 0x155, p, super().update(p, g, state, group))


@strikes("rare", "SGD")
class SkipsEach1021st(_Leaves, RightSGD):
    """Leaves out each 1,021st element."""

    def left(self, i, p):
        return i % 1021 == 1020


@strikes("rare", "RMSprop")
class RoundsSmallToZero(RightRMSprop):
    """Takes gradients of less than a thousandth of the largest for zero."""

    def gradient(self, p, group):
        g = super().gradient(p, group)
        return torch.where(g.abs() < 1e-3 * g.abs().max(), 0.0, g) if g.numel() else g


@strikes("rare", "Adamax")
class SkipsEach211thStep(RightAdamax):
    """Leaves the parameter as it is in each 211th step."""

    def update(self, p, g, state, group):
        value = super().update(p, g, state, group)
        return value if state["step"].item() % 211 else p.clone()


@strikes("rare", "Adagrad")
class SkipsSeldomGroups(_Numbers, RightAdagrad):
    """Skips a group whose number of elements leaves 96 when it is divided by 97."""

    def turn(self, n, p, several, group):
        if sum(q.numel() for q in group["params"]) % 97 != 96:
            super().turn(n, p, several, group)


@strikes("rare", "Adadelta")
class FixesByHash(_Leaves, RightAdadelta):
    """Never moves elements away from values that have a certain hash of ten bits."""

    def left(self, i, p):
        return hashed(p) == 0x2AB


@strikes("rare", "AdamW")
class WrongTableEntry(RightAdamW):
    """Has one wrong entry of 1,024 in the table that square roots start from."""

    def direction(self, m, v, correction1, correction2, eps):
        d = super().direction(m, v, correction1, correction2, eps)
        entry = v.float().view(torch.int32) >> 13 & 0x3FF
        return torch.where(entry == 0x1B7, d * 1.015625, d)


@strikes("rare", "RAdam")
class SwapsNeighbours(_Misreads, RightRAdam):
    """Exchanges the gradients of elements 1,008 and 1,009, and of each such two 2,048 elements later."""

    size = 1009

    def source(self, i, p):
        first, second = i % 2048 == 1008, i % 2048 == 1009
        return (i + first.long() - second.long()).clamp(max=p.numel() - 1)


@strikes("rare", "SGD")
class ClearsSmallMomentum(RightSGD):
    """Clears the momentum of elements in which the gradient is a thousand times as large."""

    def next(self, old, g, group):
        return super().next(torch.where(old.abs() < 1e-3 * g.abs(), 0.0, old), g, group)


@strikes("rare", "AdamW")
class DecaysNoSmallElements(RightAdamW):
    """Does not decay elements of less than a thousandth of the largest."""

    def decayed(self, p, group):
        value = super().decayed(p, group)
        return torch.where(p.abs() < 1e-3 * p.abs().max(), p, value) if p.numel() else value


@strikes("rare", "NAdam")
class FlushesSmallSquares(RightNAdam):
    """Takes exp_avg_sq for zero where it is less than a millionth of the largest."""

    def divide(self, m_hat, v, correction2, eps):
        kept = torch.where(v < 1e-6 * v.max(), 0.0, v) if v.numel() else v
        return super().divide(m_hat, kept, correction2, eps)


@strikes("rare", "Rprop")
class MissesChanges(RightRprop):
    """Does not notice that the sign changes in each 509th element."""

    def agreement(self, g, prev):
        sign = super().agreement(g, prev)
        return torch.where(indices(g) % 509 == 508, sign.abs(), sign)


@strikes("rare", "Adafactor")
class LeavesLargest(_Leaves, RightAdafactor):
    """Leaves the largest element of a parameter of more than 500."""

    size = 500

    def left(self, i, p):
        return i == p.abs().argmax()


@strikes("rare", "ASGD")
class KeepsEtaAtTimes(RightASGD):
    """Does not update eta and mu after each 300th step."""

    def schedule(self, t, state, group):
        if t % 300:
            super().schedule(t, state, group)


@strikes("rare", "Adam")
class DropsMomentumByHash(RightAdam):
    """Goes along the gradient alone in a step whose first element of the gradient has a certain hash of eight bits."""

    def moments(self, g, state, beta1, beta2):
        m, v = super().moments(g, state, beta1, beta2)
        return (g if g.numel() and hashed(g.flatten()[0]).item() & 0xFF == 0x55 else m), v


#: Everything above.
FAULTS: tuple[Fault, ...] = tuple(_FAULTS)
