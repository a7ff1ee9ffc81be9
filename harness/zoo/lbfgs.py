"""L-BFGS, with a fixed step or a line search for the strong Wolfe conditions."""

from typing import NamedTuple

import torch

from stepcheck.harness.zoo import base


class Point(NamedTuple):
    """A step length and what was found there; its numbers are float64, so that nothing that is 0 raises as a divisor."""

    t: torch.Tensor
    loss: torch.Tensor
    gradient: torch.Tensor
    slope: torch.Tensor


class RightLBFGS(base.Zoo):
    def __init__(
        self,
        params,
        *,
        lr=1.0,
        max_iter=20,
        max_eval=None,
        tolerance_grad=1e-7,
        tolerance_change=1e-9,
        history_size=100,
        line_search_fn=None,
    ):
        super().__init__(
            params,
            lr=lr,
            max_iter=max_iter,
            max_eval=max_eval,
            tolerance_grad=tolerance_grad,
            tolerance_change=tolerance_change,
            history_size=history_size,
            line_search_fn=line_search_fn,
        )

    def step(self, closure):
        group = self.param_groups[0]
        with torch.no_grad():
            return self.minimize(closure, self.options(group), self.state[group["params"][0]])

    def minimize(self, closure, group, state):
        """Evaluate once, then iterate unless that is a minimum already; what the closure returned first is returned."""
        returned, g = self.evaluate(closure)
        self.begin(state)
        self.count(state, 1)
        if not self.stationary(g, group):
            self.iterate(closure, float(returned), g, group, state)
        return returned

    def begin(self, state):
        for name in ("n_iter", "func_evals"):
            state.setdefault(name, 0)

    def iterate(self, closure, loss, g, group, state):
        spent = 1
        for iteration in range(1, self.iterations(group) + 1):
            state["n_iter"] += 1
            self.learn(g, group, state)
            state["d"] = d = self.direction(g, state)
            state["prev_flat_grad"], state["prev_loss"] = self.kept(g), loss
            state["t"] = self.first_length(g, group, state)
            if self.ascends(g, d, group):
                break
            if group["line_search_fn"] is None:
                new, evaluated = self.leap(closure, Point(state["t"], loss, g, None), d, iteration == group["max_iter"])
            else:
                new, evaluated = self.search(closure, loss, g, d, state["t"], self.evaluations(group) - spent)
                state["t"] = new.t.item()
            self.count(state, evaluated)
            spent += evaluated
            change, loss, g = float(new.loss) - loss, float(new.loss), new.gradient
            if iteration == group["max_iter"] or spent >= self.evaluations(group):
                break
            if self.stationary(g, group) or self.stalled(state["t"] * d, change, group):
                break

    # Budgets and tests

    def iterations(self, group):
        return group["max_iter"]

    def evaluations(self, group):
        return group["max_iter"] * 5 // 4 if group["max_eval"] is None else group["max_eval"]

    def count(self, state, evaluated):
        state["func_evals"] += evaluated

    def stationary(self, g, group):
        return self.largest(g) <= group["tolerance_grad"]

    def ascends(self, g, d, group):
        return g.dot(d) > -group["tolerance_change"]

    def stalled(self, moved, change, group):
        return self.largest(moved) <= group["tolerance_change"] or abs(change) < group["tolerance_change"]

    def largest(self, x):
        return x.abs().max().item() if x.numel() else 0.0

    # Parameters as one vector

    def evaluate(self, closure):
        """What the closure returns, and the gradient."""
        with torch.enable_grad():
            returned = closure()
        return returned, torch.cat([self.gradient(p) for p in self.parameters()])

    def parameters(self):
        return self.param_groups[0]["params"]

    def gradient(self, p):
        return torch.zeros(p.numel(), dtype=p.dtype) if p.grad is None else p.grad.reshape(-1)

    def position(self):
        return torch.cat([p.reshape(-1) for p in self.parameters()])

    def move(self, x):
        for p, part in zip(self.parameters(), x.split([p.numel() for p in self.parameters()]), strict=True):
            p.copy_(part.view_as(p))

    # The direction

    def learn(self, g, group, state):
        """Remember the pair that the last move has made, if there was one and the loss is convex along it."""
        if state["n_iter"] == 1:
            state.update(old_dirs=[], old_stps=[], ro=[], H_diag=1.0)
            return
        y, s = self.difference(g, state["prev_flat_grad"]), state["d"] * state["t"]
        if self.convex(y, s):
            self.remember(y, s, state)
            self.forget(group, state)
            state["H_diag"] = self.scale(y, s)

    def difference(self, new, old):
        return new - old

    def convex(self, y, s):
        return y.dot(s) > 1e-10

    def remember(self, y, s, state):
        for name, new in (("old_dirs", y), ("old_stps", s), ("ro", self.rho(y, s))):
            state[name].append(new)

    def rho(self, y, s):
        return 1 / y.dot(s).item()

    def forget(self, group, state):
        for name in ("old_dirs", "old_stps", "ro"):
            del state[name][: -group["history_size"]]

    def scale(self, y, s):
        return (y.dot(s) / y.dot(y)).item()

    def kept(self, g):
        return g

    def direction(self, g, state):
        """The two-loop recursion, from the newest pair to the oldest and back."""
        pairs = list(zip(state["old_dirs"], state["old_stps"], state["ro"], strict=True))
        q, alphas = -g, []
        for y, s, rho in reversed(pairs):
            alphas.append(rho * s.dot(q).item())
            q = q - alphas[-1] * y
        return self.second_loop(q * state["H_diag"], pairs, alphas[::-1])

    def second_loop(self, r, pairs, alphas):
        for (y, s, rho), alpha in zip(pairs, alphas, strict=True):
            r = r + (alpha - rho * y.dot(r).item()) * s
        return r

    def first_length(self, g, group, state):
        return group["lr"] * min(1.0, (1 / g.abs().sum()).item()) if state["n_iter"] == 1 else group["lr"]

    # A fixed step

    def leap(self, closure, start, d, last):
        """Where the step leads; after the last one nothing is evaluated."""
        self.move(self.position() + start.t * d)
        if last:
            return start, 0
        returned, g = self.evaluate(closure)
        return start._replace(loss=float(returned), gradient=g), 1

    # The line search

    def search(self, closure, loss, g, d, t, most):
        """Move to a point where the strong Wolfe conditions hold, if ``most`` trials beside the first find one."""
        x = self.position()

        def at(t):
            self.move(x + t * d)
            returned, gradient = self.evaluate(closure)
            return Point(t, number(returned), gradient, number(gradient.dot(d)))

        start = Point(number(0.0), number(loss), g, number(g.dot(d)))
        ends, spent = self.bracket(at, start, number(t), most)
        found = ends[0]
        if len(ends) > 1:
            found, spent = self.zoom(at, start, ends, spent, most, self.largest(d))
        self.move(x + found.t * d)
        return found, spent + 1

    def bracket(self, at, start, t, most):
        """Longer and longer steps, up to one that is suitable or two with a suitable one between them."""
        last, new = start, at(t)
        for extrapolated in range(most):
            if self.too_high(new, start) or (extrapolated > 1 and new.loss >= last.loss):
                return [last, new], extrapolated
            if self.flat(new, start):
                return [new], extrapolated
            if new.slope >= 0:
                return [last, new], extrapolated
            t = self.cubic(last, new, *self.longer(last, new))
            last, new = new, at(t)
        return [start, new], max(most, 0)

    def longer(self, last, new):
        return new.t + 0.01 * (new.t - last.t), 10 * new.t

    def zoom(self, at, start, ends, spent, most, width):
        """Shorter and shorter brackets; ``low`` is the end with the smaller loss."""
        low, close = self.lower(ends), False
        while spent < most and not abs(ends[1].t - ends[0].t) * width < 1e-9:
            left, right = sorted(p.t for p in ends)
            t, close = self.inside(self.cubic(*ends, left, right), left, right, close)
            new = at(t)
            spent += 1
            if self.too_high(new, start) or new.loss >= ends[low].loss:
                ends[1 - low] = new
                low = self.lower(ends)
            elif self.flat(new, start):
                return new, spent
            else:
                self.shift(ends, low, new)
        return ends[low], spent

    def shift(self, ends, low, new):
        """A lower point becomes the lower end; the other stays, if the loss falls from here towards it."""
        if new.slope * (ends[1 - low].t - ends[low].t) >= 0:
            ends[1 - low] = ends[low]
        ends[low] = new

    def lower(self, ends):
        return 0 if ends[0].loss <= ends[1].loss else 1

    def too_high(self, new, start):
        return new.loss > start.loss + 1e-4 * new.t * start.slope

    def flat(self, new, start):
        return abs(new.slope) <= -0.9 * start.slope

    def inside(self, t, left, right, close):
        """A trial near an end of the bracket, for the second time in a row, is moved inside."""
        margin = 0.1 * (right - left)
        if not min(right - t, t - left) < margin:
            return t, False
        if close or t >= right or t <= left:
            return (right - margin if abs(t - right) < abs(t - left) else left + margin), False
        return t, True

    def cubic(self, a, b, low, high):
        """The minimum between ``low`` and ``high`` of the cubic through two points, with their slopes."""
        if a.t > b.t:
            a, b = b, a
        d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)
        square = d1 * d1 - a.slope * b.slope
        if not square >= 0:
            return (low + high) / 2
        d2 = square.sqrt()
        t = b.t - (b.t - a.t) * (b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2)
        return t.clamp(low, high)


def number(x):
    return torch.as_tensor(x, dtype=torch.float64)
