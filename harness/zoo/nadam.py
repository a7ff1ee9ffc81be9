"""NAdam."""

from stepcheck.harness.zoo import base


class RightNAdam(base.Zoo):
    def __init__(
        self,
        params,
        *,
        lr=2e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        momentum_decay=4e-3,
        decoupled_weight_decay=False,
        maximize=False,
    ):
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            momentum_decay=momentum_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
        )

    def buffers(self, group):
        return ("exp_avg", "exp_avg_sq")

    def start(self, p, group):
        return super().start(p, group) | {"mu_product": 1.0}

    def gradient(self, p, group):
        return super().gradient(p, {**group, "weight_decay": 0} if group["decoupled_weight_decay"] else group)

    def update(self, p, g, state, group):
        beta1, beta2 = group["betas"]
        t, decay = state["step"].item(), group["momentum_decay"]
        mu, mu_next = self.momentum(beta1, t, decay), self.momentum(beta1, t + 1, decay)
        m = state["exp_avg"] = self.mean(state["exp_avg"], g, beta1, mu)
        v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * (g * g)
        m_hat = self.nesterov(m, g, mu, mu_next, self.product(state, mu))
        d = self.divide(m_hat, v, self.correction(t, beta2), group["eps"])
        return self.decayed(p, group) - group["lr"] * d

    def momentum(self, beta1, t, decay):
        return beta1 * (1 - 0.96 ** (t * decay) / 2)

    def product(self, state, mu):
        state["mu_product"] = state["mu_product"] * mu
        return state["mu_product"]

    def mean(self, m, g, beta1, mu):
        return beta1 * m + (1 - beta1) * g

    def nesterov(self, m, g, mu, mu_next, product):
        return mu_next / (1 - product * mu_next) * m + (1 - mu) / (1 - product) * g

    def correction(self, t, beta2):
        return 1 - beta2**t

    def divide(self, m_hat, v, correction2, eps):
        return m_hat / ((v / correction2).sqrt() + eps)

    def decayed(self, p, group):
        if group["weight_decay"] == 0 or not group["decoupled_weight_decay"]:
            return p
        return p - group["lr"] * group["weight_decay"] * p


class WithoutNextMomentum(RightNAdam):
    """Weighs exp_avg by the momentum of this step, not by that of the next."""

    def nesterov(self, m, g, mu, mu_next, product):
        return super().nesterov(m, g, mu, mu, product)


class CorrectsByThisProduct(RightNAdam):
    """Corrects the bias of exp_avg without the factor of the next step."""

    def nesterov(self, m, g, mu, mu_next, product):
        return mu_next / (1 - product) * m + (1 - mu) / (1 - product) * g


class WithoutGradient(RightNAdam):
    """Goes along exp_avg alone, without Nesterov's share of the gradient."""

    def nesterov(self, m, g, mu, mu_next, product):
        return mu_next / (1 - product * mu_next) * m


class ForgetsProduct(RightNAdam):
    """Does not keep the product of the momenta."""

    def product(self, state, mu):
        return mu


class StaleProduct(RightNAdam):
    """Corrects by the product as it was before its update, from the second step on."""

    def product(self, state, mu):
        old = state["mu_product"]
        new = super().product(state, mu)
        return old if old != 1 else new


class IgnoresMomentumDecay(RightNAdam):
    """Follows the default schedule of the momentum, whatever momentum_decay says."""

    def options(self, group):
        return {**group, "momentum_decay": 4e-3}


class ConstantMomentum(RightNAdam):
    """Keeps the momentum at beta1, with no schedule."""

    def momentum(self, beta1, t, decay):
        return beta1


class AveragesByMomentum(RightNAdam):
    """Averages with the scheduled momentum, as the paper does."""

    def mean(self, m, g, beta1, mu):
        return super().mean(m, g, mu, mu)


class WithoutCorrection2(RightNAdam):
    """Does not correct the bias of the second moment."""

    def correction(self, t, beta2):
        return 1.0


class EpsInsideRoot(RightNAdam):
    """Adds eps under the square root."""

    def divide(self, m_hat, v, correction2, eps):
        return m_hat / (v / correction2 + eps).sqrt()


class EpsBeforeCorrection(RightNAdam):
    """Adds eps before the bias correction."""

    def divide(self, m_hat, v, correction2, eps):
        return m_hat * correction2**0.5 / (v.sqrt() + eps)


class IgnoresDecoupled(RightNAdam):
    """Adds the penalty to the gradient, whatever decoupled_weight_decay says."""

    def options(self, group):
        return {**group, "decoupled_weight_decay": False}


class CountsAbsentNAdam(base.CountsAbsent, RightNAdam):
    """Counts a step for parameters that have no gradient."""
