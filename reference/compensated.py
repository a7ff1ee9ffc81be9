"""Steps that carry what rounding to a narrow format loses, as a variant of each elementwise optimizer.

In bfloat16 a parameter of 1 moves by no less than 2^-8: smaller steps are rounded away, one after the other. So beside each number that
small steps add up to, the state keeps what the last rounding lost, and the next step starts from the sum of both (Kahan's compensated
summation).
"""

from __future__ import annotations

from dataclasses import replace

from stepcheck.reference.spec import PARAMETER, Buffer, HyperValues, Number, Spec, State

#: The buffer that keeps what rounding the parameter loses; of a buffer, it has its name in front.
COMPENSATION = "compensation"


def compensated(spec: Spec) -> Spec:
    r"""The optimizer with compensated parameters and slow averages.

    .. math::
        x &\leftarrow \hat x_{t-1} + c_{t-1} \quad\text{for the parameter and each slow average} \\
        x_t &\leftarrow \text{the step of the optimizer} \\
        \hat x_t &= \mathrm{fl}(x_t), \qquad c_t = \mathrm{fl}(x_t - \hat x_t)

    :math:`\hat x` is what the parameter, or the average, holds, and :math:`c` a buffer of its shape and dtype, 0 at first: ``compensation``
    of the parameter, ``NAME_compensation`` of an average. The reference knows no dtype, and so no rounding: what it returns for
    :math:`c_t` is :math:`x_t` itself, which the sum of the two is to be.

    Source: Kahan, *Further remarks on reducing truncation errors*, CACM 8(1), 1965; for training in bfloat16, Zamirai, Zhang, Aberger, De Sa,
    *Revisiting BFloat16 training*, 2020, algorithm 3.
    """
    slow = [b for b in spec.buffers if b.slow]
    kept = [
        Buffer(COMPENSATION, "parameter units", of=PARAMETER),
        *(Buffer(f"{b.name}_{COMPENSATION}", b.unit, present=b.present, of=b.name) for b in slow),
    ]

    def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
        own = {b.name: state[b.name] for b in spec.buffers if b.name in state}
        for c in kept[1:]:
            if c.name in state:
                own[c.of] = own[c.of] + state[c.name]
        new_p, after = spec.update(p + state[COMPENSATION], g, own, hyper)
        wholes = {c.name: after[c.of] for c in kept[1:] if c.name in state}
        return new_p, {**after, COMPENSATION: new_p, **wholes}

    return replace(spec, update=update, buffers=(*spec.buffers, *kept))
