"""SparseAdam."""

import torch

from stepcheck.harness.zoo import base


class RightSparseAdam(base.Zoo):
    def __init__(self, params, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, maximize=False):
        super().__init__(params, lr=lr, betas=betas, eps=eps, maximize=maximize)

    def buffers(self, group):
        return ("exp_avg", "exp_avg_sq")

    def gradient(self, p, group):
        return p.grad.coalesce()

    def update(self, p, g, state, group):
        named = tuple(g._indices())
        values = -g._values() if group["maximize"] else g._values()
        m, v = self.moments(values, state, named, *group["betas"])
        d = self.direction(m, v, *self.corrections(state["step"].item(), *group["betas"]), group["eps"])
        return self.move(p, named, d, group["lr"])

    def moments(self, values, state, named, beta1, beta2):
        m = beta1 * state["exp_avg"][named] + (1 - beta1) * values
        v = beta2 * state["exp_avg_sq"][named] + (1 - beta2) * (values * values)
        state["exp_avg"] = state["exp_avg"].index_put(named, m)
        state["exp_avg_sq"] = state["exp_avg_sq"].index_put(named, v)
        return m, v

    def corrections(self, t, beta1, beta2):
        return 1 - beta1**t, 1 - beta2**t

    def direction(self, m, v, correction1, correction2, eps):
        return m / (v.sqrt() + eps) * (correction2**0.5 / correction1)

    def move(self, p, named, d, lr):
        return p.index_put(named, p[named] - lr * d)


class EpsAfterCorrection(RightSparseAdam):
    """Adds eps after the bias correction, as Adam does."""

    def direction(self, m, v, correction1, correction2, eps):
        return m / correction1 / ((v / correction2).sqrt() + eps)


class EpsInsideRoot(RightSparseAdam):
    """Adds eps under the square root."""

    def direction(self, m, v, correction1, correction2, eps):
        return super().direction(m, v + eps, correction1, correction2, 0.0)


class WithoutCorrections(RightSparseAdam):
    """Does not correct the bias of either moment."""

    def corrections(self, t, beta1, beta2):
        return 1.0, 1.0


class Densifies(RightSparseAdam):
    """Takes elements that are not named for zero, so that they move on by their momentum."""

    def gradient(self, p, group):
        everywhere = torch.ones_like(p).to_sparse(1).indices()
        return torch.sparse_coo_tensor(
            everywhere, p.grad.to_dense(), p.shape, is_coalesced=True, check_invariants=False
        )


class ForgetsUnnamed(RightSparseAdam):
    """Decays the momentum of all elements and moves the named ones."""

    def moments(self, values, state, named, beta1, beta2):
        m, v = super().moments(values, state, named, beta1, beta2)
        state["exp_avg"] = (beta1 * state["exp_avg"]).index_put(named, m)
        return m, v


class TakesLastDuplicate(RightSparseAdam):
    """Takes one entry of an element that is named several times, not their sum."""

    def gradient(self, p, group):
        return p.grad


class SquaresDuplicates(RightSparseAdam):
    """Squares the entries of an element before it sums them."""

    def visit(self, p, group):
        self.entries = p.grad
        super().visit(p, group)

    def moments(self, values, state, named, beta1, beta2):
        squares = torch.sparse_coo_tensor(
            self.entries._indices(), self.entries._values() ** 2, self.entries.shape, check_invariants=False
        )
        old = state["exp_avg_sq"]
        m, _ = super().moments(values, state, named, beta1, beta2)
        v = beta2 * old[named] + (1 - beta2) * squares.coalesce()._values()
        state["exp_avg_sq"] = old.index_put(named, v)
        return m, v


class AppliesDuplicatesInTurn(RightSparseAdam):
    """Takes a step for each entry of an element that is named several times."""

    def update(self, p, g, state, group):
        value = p
        for i in range(p.grad._nnz()):
            entry = torch.sparse_coo_tensor(
                p.grad._indices()[:, i : i + 1],
                p.grad._values()[i : i + 1],
                p.shape,
                is_coalesced=True,
                check_invariants=False,
            )
            value = super().update(value, entry, state, group)
        return value


class CountsNamed(RightSparseAdam):
    """Does not count a step whose gradient names nothing."""

    def count(self, p, state):
        return state["step"] + 1 if p.grad._values().numel() else state["step"]


class MinimizesSparse(RightSparseAdam):
    """Minimizes, whatever maximize says."""

    def options(self, group):
        return {**group, "maximize": False}


class AveragesNew(RightSparseAdam):
    """Averages as if the old average were zero."""

    def moments(self, values, state, named, beta1, beta2):
        state["exp_avg"] = state["exp_avg"].index_put(named, torch.zeros_like(values))
        return super().moments(values, state, named, beta1, beta2)


class ForgetsStateSparseAdam(base.ForgetsState, RightSparseAdam):
    """Loads the options of a state_dict and not the state."""


class WritesToCopySparseAdam(base.WritesToCopy, RightSparseAdam):
    """Writes to a row-major view, which is a copy where the parameter is strided."""
