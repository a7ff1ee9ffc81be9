"""torch.optim.Muon iterates in bfloat16 whatever the dtype, the fast one in float32 or float64. For comparisons, torch's is made to do so in float64."""

from torch.optim import _muon


def zeropower(g, coefficients, steps, eps):
    """The iteration of Newton and Schulz, as torch's, in float64."""
    a, b, c = coefficients
    x = g.double().mT if g.shape[0] > g.shape[1] else g.double()
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if g.shape[0] > g.shape[1] else x


def iterate_in_float64(monkeypatch):
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", zeropower)
