"""Adam as a process: a request a line on standard input, an answer a line on standard output."""

import json
import math
import sys
from ctypes import c_float

OPTIONS = {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "maximize": False}


def quotient(a, b):
    """As IEEE 754 has it; Python raises where b is 0."""
    return a / b if b else math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a)


def step(options, parameter, gradient, state, dtype, **_):
    """One step of one parameter, computed in float64."""
    stored = (lambda x: c_float(x).value) if dtype == "float32" else float
    (beta1, beta2), decay = options["betas"], options["weight_decay"]
    state = state or {"step": 0, "exp_avg": [0.0] * len(parameter), "exp_avg_sq": [0.0] * len(parameter)}
    t, rows = state["step"] + 1, []
    # What is not finite is sent by its name, which float() reads.
    for p, g, m, v in zip(parameter, gradient, state["exp_avg"], state["exp_avg_sq"], strict=True):
        p, g, m, v = float(p), float(g), float(m), float(v)
        g = (-g if options["maximize"] else g) + (decay * p if decay else 0.0)
        m = stored(beta1 * m + (1 - beta1) * g)
        v = stored(beta2 * v + (1 - beta2) * g * g)
        root = math.sqrt(v / (1 - beta2**t)) + options["eps"]
        rows.append((stored(p - options["lr"] / (1 - beta1**t) * quotient(m, root)), m, v))
    parameter, exp_avg, exp_avg_sq = ([row[n] for row in rows] for n in range(3))
    return {"parameter": parameter, "state": {"step": t, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}}


for line in sys.stdin:
    request = json.loads(line)
    answer = {"options": OPTIONS} if "hello" in request else step(**request["step"])
    print(json.dumps(answer), flush=True)
