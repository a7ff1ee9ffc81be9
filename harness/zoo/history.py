"""Wrong optimizers that really happened, with the thread in which somebody found it out.

Each is the fault of the thread and nothing else, put into a right optimizer of the zoo: what was found in a kernel for a
GPU, in another language or in an optimizer that stepcheck does not know is told of the nearest one that it does.
"""

import torch

from stepcheck.harness.zoo import adam, base, life, radam, rmsprop, sgd, sparse_adam
from stepcheck.harness.zoo.adadelta import RightAdadelta
from stepcheck.harness.zoo.adafactor import RightAdafactor
from stepcheck.harness.zoo.adagrad import RightAdagrad
from stepcheck.harness.zoo.adam import RightAdam, RightAdamW
from stepcheck.harness.zoo.adamax import RightAdamax
from stepcheck.harness.zoo.asgd import RightASGD
from stepcheck.harness.zoo.fault import DEVIATES, Fault
from stepcheck.harness.zoo.muon import RightMuon
from stepcheck.harness.zoo.nadam import RightNAdam
from stepcheck.harness.zoo.radam import RightRAdam
from stepcheck.harness.zoo.rmsprop import RightRMSprop
from stepcheck.harness.zoo.rprop import RightRprop
from stepcheck.harness.zoo.sgd import RightSGD
from stepcheck.harness.zoo.sparse_adam import RightSparseAdam

_FAULTS: list[Fault] = []


def happened(like, *links, checks=DEVIATES):
    """Enters a class into the history, as a fault of ``like`` that is told of in threads on GitHub."""

    def enter(make):
        _FAULTS.append(Fault(make, like, checks, "history", tuple(f"https://github.com/{link}" for link in links)))
        return make

    return enter


def present(group):
    """The parameters of a group that have a gradient."""
    return [p for p in group["params"] if p.grad is not None]


# SGD

happened("SGD", "pytorch/pytorch/issues/12218", checks=("gradient-unwritten", "completes"))(sgd.DecaysIntoGradientSGD)
happened("SGD", "ml-explore/mlx/pull/473")(sgd.DampensFirstStep)
happened("SGD", "paiml/aprender/pull/2190", "apache/mxnet/issues/15533")(sgd.AccumulatesLr)
happened("SGD", "ahrefs/ocannl/issues/673", checks=("no-gradient",))(sgd.TakesAbsentForZeroSGD)
happened("SGD", "HomebrewML/HeavyBall/issues/10", "nikhilvyas/SOAP/pull/21", checks=("closure",))(
    life.on(RightSGD, life.CallsClosureWithoutGrad)
)
happened("SGD", "huggingface/accelerate/pull/4274", checks=("closure",))(life.on(RightSGD, life.DropsLoss))
happened("SGD", "mpariente/Ranger-Deep-Learning-Optimizer/pull/2", checks=("closure", "failed-step"))(
    life.on(RightSGD, life.NeverCallsClosure)
)


@happened("SGD", "ml-explore/mlx/pull/473")
class DecaysWithMomentumOnly(RightSGD):
    """Looks at weight_decay where there is momentum, as MLX did."""

    def gradient(self, p, group):
        return super().gradient(p, group if group["momentum"] != 0 else {**group, "weight_decay": 0})


@happened("SGD", "ml-explore/mlx/pull/87")
class LooksAheadIntoBuffer(RightSGD):
    """Looks ahead along the old buffer and accumulates that, as the first draft of MLX's Nesterov did."""

    def update(self, p, g, state, group):
        if group["nesterov"] and "momentum_buffer" in state:
            g = g + group["momentum"] * state["momentum_buffer"]
        return super().update(p, g, state, {**group, "nesterov": False})


@happened("SGD", "PaddlePaddle/Paddle/pull/12231")
class LooksBack(RightSGD):
    """Subtracts Nesterov's share of the buffer from the gradient, as Paddle did."""

    def direction(self, g, old, new, group):
        return g - group["momentum"] * new if group["nesterov"] else new


@happened("SGD", "kozistr/pytorch_optimizer/pull/516")
class StartsBufferAnew(RightSGD):
    """Starts the momentum buffer at every step, as pytorch_optimizer's SignSGD did."""

    def update(self, p, g, state, group):
        state.pop("momentum_buffer", None)
        return super().update(p, g, state, group)


@happened("SGD", "kozistr/pytorch_optimizer/issues/517")
class AcceptsWeightDecay(RightSGD):
    """Takes weight_decay and never looks at it, as pytorch_optimizer's SignSGD did."""

    def gradient(self, p, group):
        return super().gradient(p, {**group, "weight_decay": 0})


@happened("SGD", "tenstorrent/tt-metal/pull/53222")
class DampensLateGradients(RightSGD):
    """Dampens the first gradient of a parameter that comes after the first step, as tt-train did."""

    def walk(self):
        super().walk()
        self.stepped = True

    def first(self, g, group):
        return self.next(torch.zeros_like(g), g, group) if hasattr(self, "stepped") else super().first(g, group)


@happened("SGD", "candle-org/candle/issues/322", checks=("completes",))
class SlicesBuffer(RightSGD):
    """Assigns to a slice of the momentum buffer, which a 0-d one does not have, as Candle did."""

    def next(self, old, g, group):
        old[:] = super().next(old, g, group)
        return old


@happened("SGD", "NVIDIA/apex/issues/766")
class KeepsLoadedGroups(RightSGD):
    """Goes on with the options as they were loaded, whatever is set since, as Apex's LARC did."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.inner = [dict(group) for group in self.param_groups]

    def options(self, group):
        number = next(n for n, g in enumerate(self.param_groups) if g is group)
        inner = getattr(self, "inner", [])
        return inner[number] if number < len(inner) else group


@happened("SGD", "Tiiiger/QPyTorch/issues/40", "KellerJordan/Muon/pull/36", checks=("completes",))
class NeedsGradient(RightSGD):
    """Stumbles over a parameter that has no gradient, as QPyTorch and Muon did."""

    def walk(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.visit(p, self.options(group))


@happened("SGD", "pytorch/pytorch/pull/10906", checks=("completes", "save-load-continue"))
class PicklesWithoutDefaults(RightSGD):
    """Pickles everything but the defaults, which a new group then lacks, as torch did."""

    def __getstate__(self):
        return {name: value for name, value in super().__getstate__().items() if name != "defaults"}


@happened("SGD", "nntrainer/nntrainer/issues/241")
class UpdatesCopy(RightSGD):
    """Updates a copy of the parameter, as NNTrainer did."""

    def write(self, p, value):
        p.clone().copy_(value)


@happened("SGD", "hpcaitech/ColossalAI/pull/633")
class CountsRows(RightSGD):
    """Takes the number of rows for that of elements and leaves the rest as it is, as ColossalAI's CPU Adam did."""

    def write(self, p, value):
        within = torch.arange(p.numel()).reshape(p.shape) < p.shape[:1].numel()
        super().write(p, torch.where(within, value, p))


@happened("SGD", "ROCm/apex/pull/97")
class PairsInMemoryOrder(RightSGD):
    """Pairs parameter and gradient in the order of their memory where their strides differ, as Apex's FusedSGD did."""

    def gradient(self, p, group):
        kept = p.grad
        if kept.is_contiguous() and not p.is_contiguous():
            p.grad = torch.empty_like(p)
            p.grad.as_strided((p.numel(),), (1,)).copy_(kept.reshape(-1))
        g = super().gradient(p, group)
        p.grad = kept
        return g


@happened("SGD", "huggingface/accelerate/issues/42", "NVIDIA/apex/issues/1196", checks=("completes", "between-steps"))
class ClearsItsOwnWay(RightSGD):
    """Has a zero_grad that takes no arguments, as Accelerate's and Apex's did."""

    def zero_grad(self):
        super().zero_grad()


# Adam

happened("Adam", "pytorch/pytorch/pull/4034")(adam.ForgetsMaximum)
happened("Adam", "pytorch/pytorch/pull/92706", checks=("gradient-unwritten", "completes"))(adam.DecaysIntoGradientAdam)
happened("Adam", "karpathy/nanochat/issues/304", "tensorflow/tensorflow/issues/9047")(adam.EpsBeforeCorrection)
happened("Adam", "tiny-dnn/tiny-dnn/pull/824")(adam.CorrectsByNextStep)
happened("Adam", "TrenTorch/TrenTorch/pull/187", checks=("save-load-continue",))(adam.ForgetsStateAdam)
happened("Adam", "bitsandbytes-foundation/bitsandbytes/pull/1187", checks=("memory-beside", "completes", *DEVIATES))(
    adam.IgnoresStridesAdam
)
happened("Adam", "tensorflow/swift-apis/issues/421", checks=("no-gradient",))(adam.TakesAbsentForZeroAdam)
happened("Adam", "ooples/AiDotNet/issues/1470")(adam.CachedLrAdam)
happened("Adam", "rwth-i6/returnn/issues/1439")(life.on(RightAdam, life.ReadsDefaults))
happened("Adam", "kozistr/pytorch_optimizer/pull/465", checks=(*DEVIATES, "no-gradient", "completes"))(
    life.on(RightAdam, life.StateByPositionInGroup)
)


@happened("Adam", "pytorch/pytorch/pull/4314")
class KeepsRootOfMaximum(RightAdam):
    """Takes the root of AMSGrad's maximum in place, as torch's SparseAdam did."""

    def maximum(self, v, correction2, state):
        largest = super().maximum(v, correction2, state)
        state["max_exp_avg_sq"] = largest.sqrt()
        return largest


@happened("Adam", "NVIDIA/TransformerEngine/issues/3207", "pytorch/pytorch/issues/100701")
class DropsPendingUpdates(RightAdam):
    """Updates nothing in a group whose last tensor is empty, as the kernels for many tensors did."""

    def update(self, p, g, state, group):
        return super().update(p, g, state, group) if present(group)[-1].numel() else p


@happened("Adam", "pytorch/ao/pull/4915", "deepspeedai/DeepSpeed/pull/8496")
class CountsInBFloat16(RightAdam):
    """Counts in bfloat16, in which 256 + 1 is 256, as torchao and ZenFlow did."""

    def start(self, p, group):
        return super().start(p, group) | {"step": torch.tensor(0.0, dtype=torch.bfloat16)}


@happened("Adam", "pytorch/pytorch/pull/75214", "pytorch/pytorch/issues/75224", checks=("save-load-continue",))
class LoadsCountInParameterDtype(RightAdam):
    """Casts the count to the dtype of the parameter when it is loaded, as torch did."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            state["step"] = state["step"].to(p.dtype)


@happened("Adam", "kozistr/AdaBound-tensorflow/issues/3")
class ComplementsCorrection2(RightAdam):
    """Subtracts the second bias correction from 1 once more, as an AdaBound did."""

    def corrections(self, t, beta1, beta2):
        return 1 - beta1**t, beta2**t


@happened("Adam", "kozistr/pytorch_optimizer/pull/308")
class ComplementsCorrections(RightAdam):
    """Subtracts both bias corrections from 1 once more, as pytorch_optimizer's AdamG did."""

    def corrections(self, t, beta1, beta2):
        return beta1**t, beta2**t


@happened("Adam", "karpathy/convnetjs/pull/70")
class MultipliesCorrections(RightAdam):
    """Multiplies by the bias corrections, where it should divide, as ConvNetJS did."""

    def direction(self, m, v, correction1, correction2, eps):
        return super().direction(m, v, 1 / correction1, 1 / correction2, eps)


@happened("Adam", "nerfstudio-project/gsplat/pull/770")
class WithoutCorrections(RightAdam):
    """Does not correct the bias of either moment, as gsplat's SelectiveAdam did."""

    def corrections(self, t, beta1, beta2):
        return 1.0, 1.0


@happened("Adam", "kozistr/pytorch_optimizer/issues/397")
class EpsTwice(RightAdam):
    """Adds eps under the square root and to it, as pytorch_optimizer did."""

    def direction(self, m, v, correction1, correction2, eps):
        return m / correction1 / ((v / correction2 + eps).sqrt() + eps)


@happened("Adam", "kozistr/pytorch_optimizer/issues/480")
class EpsAfterReciprocal(RightAdam):
    """Adds eps to the reciprocal of the root, as pytorch_optimizer's AdamP did."""

    def direction(self, m, v, correction1, correction2, eps):
        return m / correction1 * ((v / correction2).rsqrt() + eps)


@happened("Adam", "oracle/tribuo/pull/401")
class MultipliesByRoot(RightAdam):
    """Multiplies by the root of the second moment, where it should divide, as Tribuo did."""

    def direction(self, m, v, correction1, correction2, eps):
        return m / correction1 * ((v / correction2).sqrt() + eps)


@happened("Adam", "mlverse/torch/issues/821")
class AddsNumber(RightAdam):
    """Adds the number of the parameter for the parameter in the L2 penalty, as torch for R did."""

    def gradient(self, p, group):
        g = super().gradient(p, {**group, "weight_decay": 0})
        number = next(n for n, q in enumerate(group["params"], 1) if q is p)
        return g if group["decoupled_weight_decay"] else g + group["weight_decay"] * number


@happened("Adam", "flagos-ai/FlagGems/pull/4989", "deepspeedai/DeepSpeed/pull/8307")
class AlwaysDecouples(RightAdam):
    """Decouples the weight decay, whether asked to or not, as FlagGems and DeepSpeed's CPU kernel did."""

    def options(self, group):
        return {**group, "decoupled_weight_decay": True}


@happened("Adam", "OpenBMB/BMTrain/pull/35")
class MaximizesNothing(base.IgnoresMaximize, RightAdam):
    """Turns the gradient and does not use what it turned, as a first BMTrain did."""

    def gradient(self, p, group):
        return super().gradient(p, {**group, "weight_decay": 0} if group["decoupled_weight_decay"] else group)


@happened("Adam", "deepspeedai/DeepSpeed/pull/8471", checks=(*DEVIATES, "no-gradient"))
class CountsLastAlone(RightAdam):
    """Counts steps of the last parameter that has a gradient and uses them for all, as DeepSpeed's FusedAdam did."""

    def visit(self, p, group):
        self.last = present(group)[-1]
        super().visit(p, group)

    def count(self, p, state):
        return super().count(p, state) if p is self.last else state["step"]

    def update(self, p, g, state, group):
        counted = self.state[self.last].get("step", torch.tensor(0.0)).item()
        return super().update(p, g, state, {**group, "t": counted if p is self.last else counted + 1})


@happened("Adam", "NVIDIA/DeepLearningExamples/issues/391", "deepspeedai/DeepSpeed/pull/1823")
class CountsEachUpdate(RightAdam):
    """Has one count for all, raised by each parameter, as LAMB in NVIDIA's BERT did."""

    def count(self, p, state):
        return max(s["step"] for s in self.state.values() if s) + 1


@happened("Adam", "allenai/OLMo-core/pull/317")
class NeverCounts(RightAdam):
    """Corrects the bias of every step as that of the first, as OLMo-core's SkipStepAdamW did."""

    def count(self, p, state):
        return torch.ones_like(state["step"])


@happened("Adam", "tenstorrent/tt-metal/issues/53212")
class CorrectsByFirstBetas(RightAdam):
    """Corrects the bias by the betas that it was built with, when others are set or loaded, as tt-train did."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.first_betas = [group["betas"] for group in self.param_groups]

    def update(self, p, g, state, group):
        self.number = next(n for n, each in enumerate(self.param_groups) if each is group)
        return super().update(p, g, state, group)

    def corrections(self, t, beta1, beta2):
        first = getattr(self, "first_betas", [])
        return super().corrections(t, *(first[self.number] if self.number < len(first) else (beta1, beta2)))


@happened("Adam", "HomebrewML/HeavyBall/issues/11", checks=(*DEVIATES, "completes"))
class StateByAddress(RightAdam):
    """Knows parameters by address and shape, which empty ones have in common, as HeavyBall did."""

    def visit(self, p, group):
        here = p.data_ptr(), p.shape
        owner = next((q for q in self.state if (q.data_ptr(), q.shape) == here), p)
        self.state[p] = self.state[owner]
        super().visit(p, group)


# AdamW

happened("AdamW", "huggingface/transformers/issues/14539", "bitsandbytes-foundation/bitsandbytes/pull/2040")(
    adam.DecaysAfterUpdate
)
happened("AdamW", "PaddlePaddle/Paddle/pull/30207")(adam.DecaysByFirstLr)
happened("AdamW", "nntrainer/nntrainer/pull/3527")(adam.PenalizesGradient)
happened("AdamW", "joennlae/tensorli/issues/1")(adam.DecaysWithoutLr)


@happened("AdamW", "jettify/pytorch-optimizer/issues/454", "e-sensing/torchopt/pull/14")
class DecaysByConstant(RightAdamW):
    """Subtracts lr times weight_decay, without the parameter, as torch-optimizer's SGDW did."""

    def decayed(self, p, group):
        return p - group["lr"] * group["weight_decay"]


@happened("AdamW", "huggingface/pytorch-image-models/pull/2750")
class DecaysForEachDtype(RightAdamW):
    """Decays all parameters of a group once for each dtype that is in it, as timm's SGDW did."""

    def decayed(self, p, group):
        for _ in {q.dtype for q in present(group)}:
            p = super().decayed(p, group)
        return p


# Adagrad


@happened("Adagrad", "deeplearning4j/deeplearning4j/issues/953")
class StartsFromOne(RightAdagrad):
    """Starts the sum of squares from 1, as Deeplearning4j did."""

    def start(self, p, group):
        return super().start(p, {**group, "initial_accumulator_value": 1.0})


@happened("Adagrad", "pytorch/pytorch/issues/53712", "Oneflow-Inc/oneflow/pull/8698", checks=("completes",))
class StartsInConstructor(RightAdagrad):
    """Makes the state in the constructor, so that a group that is added later has none, as torch did."""

    built = False

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.built = True

    def start(self, p, group):
        return {} if self.built else super().start(p, group)


@happened("Adagrad", "eaplatanios/tensorflow_scala/pull/55")
class IgnoresLrDecay(RightAdagrad):
    """Takes lr as it is, whatever lr_decay says, as TensorFlow for Scala did."""

    def rate(self, t, group):
        return group["lr"]


@happened("Adagrad", "PaddlePaddle/Paddle/issues/4184")
class Ascends(RightAdagrad):
    """Adds the update, as Paddle did."""

    def rate(self, t, group):
        return -super().rate(t, group)


@happened("Adagrad", "facebookresearch/higher/pull/44")
class FixedEps(RightAdagrad):
    """Adds 1e-10, whatever eps says, as higher did."""

    def direction(self, g, total, eps):
        return super().direction(g, total, 1e-10)


# RMSprop

happened("RMSprop", "apache/mxnet/issues/4493", "keras-team/keras/issues/435")(rmsprop.EpsInsideRoot)


@happened("RMSprop", "fastai/fastbook/pull/342")
class AddsWholeSquare(RightRMSprop):
    """Adds the whole square to the faded average, as fastai's book did."""

    def square(self, g, state, alpha):
        state["square_avg"] = alpha * state["square_avg"] + g * g
        return state["square_avg"]


# Adadelta


@happened("Adadelta", "tensorflow/tensorflow/issues/9058")
class FreshDelta(RightAdadelta):
    """Goes by acc_delta as it is after its update, because the expression was lazy, as TensorFlow did."""

    def update(self, p, g, state, group):
        super().update(p, g, state, group)
        return p - group["lr"] * self.delta(g, state["square_avg"], state["acc_delta"], group["eps"])


@happened("Adadelta", "PaddlePaddle/Paddle/pull/49732")
class IgnoresLr(RightAdadelta):
    """Takes 1 for lr, whatever it says, as Paddle did."""

    def options(self, group):
        return {**group, "lr": 1.0}


@happened("Adadelta", "tensorflow/tensorflow/pull/644")
class AddsAverage(RightAdadelta):
    """Adds the new average of squares to the old one, as the first draft of TensorFlow's did."""

    def square(self, g, state, rho):
        old = state["square_avg"]
        state["square_avg"] = old + super().square(g, state, rho)
        return state["square_avg"]


# Adamax


@happened("Adamax", "apache/mxnet/pull/18532")
class WithoutEps(RightAdamax):
    """Divides by exp_inf without eps, so that zero gradients make NaN, as MXNet did."""

    def norm(self, g, state, beta2, eps):
        return super().norm(g, state, beta2, 0.0)


# ASGD


@happened("ASGD", "pytorch/pytorch/pull/125440", checks=(*DEVIATES, "no-gradient"))
class CountsOfFirst(RightASGD):
    """Takes eta and mu from the count of the first parameter in the group, as the foreach ASGD of torch did."""

    def schedule(self, t, state, group):
        super().schedule(self.state[present(group)[0]]["step"].item(), state, group)


@happened("ASGD", "pytorch/pytorch/pull/125440")
class PowerOfCount(RightASGD):
    """Raises the count to the power of alpha, and not the sum, as the foreach ASGD of torch did."""

    def eta(self, t, lr, lambd, alpha):
        return lr / (1 + lambd * lr * torch.tensor(t, dtype=torch.float64).pow(alpha).item())


@happened("ASGD", "pytorch/pytorch/pull/70231")
class EtaOfFirst(RightASGD):
    """Steps all parameters of a group by the eta of the first, as torch's ASGD for many tensors did."""

    def walk(self):
        self.etas = {}
        super().walk()

    def descend(self, p, g, eta, group):
        first = present(group)[0]
        return super().descend(p, g, self.etas.setdefault(first, eta), group)


@happened("ASGD", "pytorch/pytorch/pull/58410")
class ForgetsSchedule(RightASGD):
    """Computes eta and mu and does not store them, as the functional ASGD of torch did at first."""

    def schedule(self, t, state, group):
        super().schedule(t, dict(state), group)


# NAdam


@happened("NAdam", "pytorch/pytorch/pull/92699", "dotnet/TorchSharp/pull/1155")
class MultipliesTwice(RightNAdam):
    """Multiplies the momentum of this step into the product for the next one again, as torch's NAdam did."""

    def nesterov(self, m, g, mu, mu_next, product):
        return mu_next / (1 - product * mu * mu_next) * m + (1 - mu) / (1 - product) * g


@happened("NAdam", "dotnet/TorchSharp/issues/1154")
class StartsProductFromZero(RightNAdam):
    """Starts the product of the momenta from 0, where it stays, as TorchSharp did."""

    def start(self, p, group):
        return super().start(p, group) | {"mu_product": 0.0}


@happened("NAdam", "apache/mxnet/issues/8925")
class MultipliesPenalty(RightNAdam):
    """Multiplies the gradient by 1 plus the penalty, as MXNet did."""

    def gradient(self, p, group):
        g = super().gradient(p, {**group, "weight_decay": 0})
        if group["weight_decay"] == 0 or group["decoupled_weight_decay"]:
            return g
        return g * (1 + group["weight_decay"] * p)


@happened("NAdam", "deeplearning4j/nd4j/pull/1891")
class CorrectsMeanInPlace(RightNAdam):
    """Keeps the corrected mean as exp_avg, as a first draft for ND4J did."""

    def update(self, p, g, state, group):
        beta1 = group["betas"][0]
        value = super().update(p, g, state, group)
        state["exp_avg"] = state["exp_avg"] * beta1 / (1 - beta1 ** state["step"].item())
        return value


# RAdam

happened("RAdam", "tensorflow/swift-apis/pull/564")(radam.PaperThreshold)


@happened("RAdam", "pytorch/pytorch/pull/92551")
class IgnoresEps(RightRAdam):
    """Adds no eps, as the foreach RAdam of torch did."""

    def divide(self, m_hat, v, correction2, eps):
        return super().divide(m_hat, v, correction2, 0.0)


@happened("RAdam", "frgfm/holocron/issues/1")
class CorrectsInPlace(RightRAdam):
    """Corrects the bias of exp_avg in place, so that corrections pile up, as Holocron did."""

    def update(self, p, g, state, group):
        value = super().update(p, g, state, group)
        state["exp_avg"] = state["exp_avg"] / (1 - group["betas"][0] ** state["step"].item())
        return value


@happened("RAdam", "LiyuanLucasLiu/RAdam/issues/24", "lessw2020/Ranger-Deep-Learning-Optimizer/pull/9")
class CachesStepSize(RightRAdam):
    """Keeps the lr of whoever comes first to a count, for ten counts, as the authors' RAdam did."""

    def update(self, p, g, state, group):
        t = state["step"].item()
        if not hasattr(self, "cache"):
            self.cache = {}
        if self.cache.get(t % 10, (0, 0))[0] != t:
            self.cache[t % 10] = t, group["lr"]
        return super().update(p, g, state, {**group, "lr": self.cache[t % 10][1]})


# Rprop


@happened("Rprop", "google-deepmind/optax/pull/1725")
class OneStepBehind(RightRprop):
    """Moves as the last step should have, as Optax did."""

    def update(self, p, g, state, group):
        changed = self.agreement(g, state["prev"]) < 0
        last = state.get("move", torch.zeros_like(p))
        state["move"] = p - super().update(p, g, state, group)
        return p - torch.where(changed, torch.zeros_like(p), last)


@happened("Rprop", "jorgenkg/python-neural-network/issues/8")
class NeverRemembers(RightRprop):
    """Does not store the gradient, so that no sign ever changes, as a Python network did."""

    def update(self, p, g, state, group):
        before = state["prev"]
        value = super().update(p, g, state, group)
        state["prev"] = before
        return value


@happened("Rprop", "libfann/fann/issues/85")
class MovesAtRest(RightRprop):
    """Takes a slope of zero, as after a change of sign, for a positive one, and moves, as FANN did."""

    def moved(self, g, sign):
        kept = super().moved(g, sign)
        return torch.where(kept == 0, -torch.ones_like(kept), kept)


# SparseAdam

happened("SparseAdam", "ooples/AiDotNet/pull/1526")(sparse_adam.AppliesDuplicatesInTurn)


@happened("SparseAdam", "pytorch/pytorch/issues/82486", checks=("completes",))
class NeedsEntries(RightSparseAdam):
    """Raises on a gradient that names nothing, as torch did."""

    def gradient(self, p, group):
        g = super().gradient(p, group)
        if not g._nnz():
            raise RuntimeError("values has incorrect size")
        return g


# Adafactor


@happened("Adafactor", "huggingface/pytorch-image-models/pull/2790")
class ClipsUpwards(RightAdafactor):
    """Divides by the smaller of 1 and RMS times d, so that it enlarges and never clips, as timm did."""

    def clip(self, u, d):
        return (self.rms(u) * d).clamp(max=1.0)


@happened("Adafactor", "jettify/pytorch-optimizer/issues/405", checks=("completes", *DEVIATES))
class DropsDimension(RightAdafactor):
    """Drops the dimension that the mean of the rows is taken over, as torch-optimizer did."""

    def total(self, row):
        rows = row.squeeze(-1)
        return (rows.mean(-1) * torch.ones_like(rows)).unsqueeze(-1)


@happened("Adafactor", "facebookresearch/ParlAI/pull/2547", checks=("options-hold", *DEVIATES))
class WritesLrBack(RightAdafactor):
    """Writes the scaled lr to the group, where the next step scales it again, as fairseq's did in ParlAI."""

    def update(self, p, g, state, group):
        relative = self.relative(p, group["eps"][1], group)
        value = super().update(p, g, state, group)
        group["lr"] = (relative * self.rho(state["step"].item(), group["lr"])).item()
        return value


# Muon


class _LooksAhead(RightMuon):
    """What a direction is without Nesterov's momentum is for the subclass to say."""

    def update(self, p, g, state, group):
        self.nesterov = group["nesterov"]
        return super().update(p, g, state, {**group, "nesterov": True})


@happened("Muon", "KellerJordan/Muon/pull/4")
class NesterovOrNothing(_LooksAhead):
    """Goes along the gradient where nesterov is off, as Muon did."""

    def lookahead(self, g, buffer, mu):
        return super().lookahead(g, buffer, mu) if self.nesterov else g


@happened("Muon", "google-deepmind/optax/pull/1170", "kozistr/pytorch_optimizer/pull/385")
class OrthogonalizesGradient(_LooksAhead):
    """Orthogonalizes the gradient and not its average, as Optax did."""

    def lookahead(self, g, buffer, mu):
        return g


@happened("Muon", "tinygrad/tinygrad/pull/17709")
class NeverDecays(RightMuon):
    """Computes the decayed parameter and does not use it, as tinygrad did."""

    def decay(self, group, lr):
        return 0.0


@happened("Muon", "KellerJordan/Muon/issues/54", "zichongli5/NorMuon/issues/3", checks=("no-gradient",))
class DecaysAbsent(RightMuon):
    """Decays parameters that have no gradient, as Muon did."""

    def walk(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.mul_(1 - self.decay(group, group["lr"]))
        super().walk()


@happened("Muon", "deepspeedai/DeepSpeed/pull/8442")
class NeverOrthogonalizes(RightMuon):
    """Goes along the momentum as it is, as DeepSpeed did without ZeRO."""

    def orthogonalized(self, d, coefficients, steps, eps):
        return d


#: Everything above.
HISTORY: tuple[Fault, ...] = tuple(_FAULTS)
