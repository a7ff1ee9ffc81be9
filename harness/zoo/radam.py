"""RAdam."""

from stepcheck.harness.zoo import base


class RightRAdam(base.Zoo):
    def __init__(
        self,
        params,
        *,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        decoupled_weight_decay=False,
        maximize=False,
    ):
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
        )

    threshold = 5

    def buffers(self, group):
        return ("exp_avg", "exp_avg_sq")

    def gradient(self, p, group):
        return super().gradient(p, {**group, "weight_decay": 0} if group["decoupled_weight_decay"] else group)

    def update(self, p, g, state, group):
        beta1, beta2 = group["betas"]
        t = group.get("t") or state["step"].item()
        m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
        v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * (g * g)
        m_hat = m / (1 - beta1**t)
        rho_inf = self.longest(beta2)
        rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        if rho > self.threshold:
            d = self.rectification(rho, rho_inf) * self.divide(m_hat, v, self.correction(t, beta2), group["eps"])
        else:
            d = self.plain(m, m_hat)
        return self.decayed(p, group) - group["lr"] * d

    def longest(self, beta2):
        return 2 / (1 - beta2) - 1

    def rectification(self, rho, rho_inf):
        return ((rho - 4) / (rho_inf - 4) * (rho - 2) / (rho_inf - 2) * rho_inf / rho) ** 0.5

    def correction(self, t, beta2):
        return 1 - beta2**t

    def divide(self, m_hat, v, correction2, eps):
        return m_hat / ((v.sqrt() + eps) / correction2**0.5)

    def plain(self, m, m_hat):
        return m_hat

    def decayed(self, p, group):
        if group["weight_decay"] == 0 or not group["decoupled_weight_decay"]:
            return p
        return p - group["lr"] * group["weight_decay"] * p


class PaperThreshold(RightRAdam):
    """Rectifies from a length of 4 on, as the paper's algorithm says."""

    threshold = 4


class LateThreshold(RightRAdam):
    """Rectifies from a length of 6 on."""

    threshold = 6


class LongestOffByOne(RightRAdam):
    """Forgets to subtract 1 from the longest length."""

    def longest(self, beta2):
        return 2 / (1 - beta2)


class LongestByBeta1(RightRAdam):
    """Takes the longest length from beta1."""

    def options(self, group):
        self.beta1 = group["betas"][0]
        return group

    def longest(self, beta2):
        return super().longest(self.beta1)


class WithoutRoot(RightRAdam):
    """Rectifies by the variance itself, not by its root."""

    def rectification(self, rho, rho_inf):
        return super().rectification(rho, rho_inf) ** 2


class NeverRectifies(RightRAdam):
    """Divides by the second moment and does not rectify."""

    def rectification(self, rho, rho_inf):
        return 1.0


class WithoutCorrection2(RightRAdam):
    """Does not correct the bias of the second moment."""

    def correction(self, t, beta2):
        return 1.0


class EpsInsideRoot(RightRAdam):
    """Adds eps under the square root."""

    def divide(self, m_hat, v, correction2, eps):
        return m_hat / ((v + eps) / correction2).sqrt()


class EpsAfterCorrection(RightRAdam):
    """Adds eps after the bias correction, as Adam does."""

    def divide(self, m_hat, v, correction2, eps):
        return m_hat / ((v / correction2).sqrt() + eps)


class PlainUncorrected(RightRAdam):
    """Does not correct the bias of the first moment while it does not rectify."""

    def plain(self, m, m_hat):
        return m


class IgnoresDecoupled(RightRAdam):
    """Adds the penalty to the gradient, whatever decoupled_weight_decay says."""

    def options(self, group):
        return {**group, "decoupled_weight_decay": False}


class CountsAsideRAdam(base.CountsAside, RightRAdam):
    """Corrects the bias by a count that is no state, so it begins anew after load_state_dict."""
