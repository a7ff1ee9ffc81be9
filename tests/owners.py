"""A framework of its own, for the tests of what has parameters of its own: NumPy's arrays, one count of steps, one group."""

import numpy as np

from stepcheck.harness.play.frameworks import to_array


class Adam:
    """Adam as a framework would have it: built with options, then given its variables."""

    def __init__(self, learning_rate=1e-3, beta_1=0.9, beta_2=0.999, epsilon=1e-8):
        if learning_rate < 0:
            raise ValueError("learning_rate must not be negative")
        self.learning_rate, self.betas, self.epsilon, self.count = learning_rate, (beta_1, beta_2), epsilon, 0

    def build(self, arrays):
        self.m, self.v = [[np.zeros_like(x) for x in arrays] for _ in range(2)]

    def apply(self, gradients, arrays):
        self.count += 1
        for n, (g, x) in enumerate(zip(gradients, arrays, strict=True)):
            if g is not None:
                self.update(n, g, x)

    def update(self, n, g, x):
        kind, (beta1, beta2) = x.dtype.type, self.betas
        self.m[n][...] += kind(1 - beta1) * (g - self.m[n])
        self.v[n][...] += kind(1 - beta2) * (g * g - self.v[n])
        root = np.sqrt(self.v[n]) / kind(np.sqrt(1 - beta2**self.count)) + kind(self.epsilon)
        x[...] -= kind(self.learning_rate / (1 - beta1**self.count)) * self.m[n] / root


class Crossed(Adam):
    """Takes the second average of the parameter before."""

    def update(self, n, g, x):
        before = self.v[n]
        if n and self.v[n - 1].shape == before.shape:
            self.v[n] = self.v[n - 1].astype(before.dtype)
        super().update(n, g, x)


class Forgets(Adam):
    """Its count is not saved."""


class Grows(Adam):
    """Gives a parameter another shape."""


class Owner:
    """As those of ``frameworks``."""

    def __init__(self, make, options, parameters):
        self.optimizer, self.arrays = make(**options), [to_array(p) for p in parameters]
        self.optimizer.build(self.arrays)

    def step(self, parameters, gradients, rate):
        for array, p in zip(self.arrays, parameters, strict=True):
            array[...] = to_array(p)
        self.optimizer.learning_rate = rate["learning_rate"]
        self.optimizer.apply([None if g is None else to_array(g) for g in gradients], self.arrays)

    def values(self):
        return [x[None] if isinstance(self.optimizer, Grows) else x for x in self.arrays]

    def states(self):
        return [
            {"step": self.optimizer.count, "m": m, "v": v}
            for m, v in zip(self.optimizer.m, self.optimizer.v, strict=True)
        ]

    def load(self, states):
        for n, state in enumerate(states):
            self.optimizer.count = 0 if isinstance(self.optimizer, Forgets) else state["step"]
            self.optimizer.m[n][...], self.optimizer.v[n][...] = state["m"], state["v"]
