"""L-BFGS, with a fixed step or a line search for the strong Wolfe conditions."""

from typing import NamedTuple

import torch

from stepcheck.harness.zoo import base
from stepcheck.harness.zoo.fault import DEVIATES


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
            state["prev_flat_grad"], state["prev_loss"] = self.kept(g, state), loss
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
        y, s = self.difference(g, state["prev_flat_grad"]), self.moved(state, group)
        if self.convex(y, s):
            self.remember(y, s, state)
            self.forget(group, state)
            state["H_diag"] = self.scale(y, s)

    def difference(self, new, old):
        return new - old

    def moved(self, state, group):
        return state["d"] * state["t"]

    def convex(self, y, s):
        return y.dot(s) > 1e-10

    def remember(self, y, s, state):
        for name, new in (("old_dirs", y), ("old_stps", s), ("ro", self.rho(y, s))):
            state[name].append(new)

    def rho(self, y, s):
        return (1 / y.dot(s)).item()

    def forget(self, group, state):
        for name in ("old_dirs", "old_stps", "ro"):
            del state[name][: -group["history_size"]]

    def scale(self, y, s):
        return (y.dot(s) / y.dot(y)).item()

    def kept(self, g, state):
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
            return self.trial(closure, x, t, d)

        start = Point(number(0.0), number(loss), g, number(g.dot(d)))
        ends, spent = self.bracket(at, start, number(t), most)
        found = ends[0]
        if len(ends) > 1:
            found, spent = self.zoom(at, start, ends, spent, most, self.largest(d))
        self.settle(x, found, d)
        return found, spent + 1

    def trial(self, closure, x, t, d):
        self.move(x + t * d)
        returned, g = self.evaluate(closure)
        return Point(t, number(returned), g, number(g.dot(d)))

    def settle(self, x, found, d):
        self.move(x + found.t * d)

    def bracket(self, at, start, t, most):
        """Longer and longer steps, up to one that is suitable or two with a suitable one between them."""
        last, new = start, at(t)
        for extrapolated in range(most):
            if self.too_high(new, start) or self.rises(last, new, extrapolated):
                return [last, new], extrapolated
            if self.flat(new, start):
                return [new], extrapolated
            if new.slope >= 0:
                return [last, new], extrapolated
            t = self.cubic(last, new, *self.longer(last, new))
            last, new = new, at(t)
        return self.widest(start, last, new), max(most, 0)

    def rises(self, last, new, extrapolated):
        return extrapolated > 1 and new.loss >= last.loss

    def widest(self, start, last, new):
        return [start, new]

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
                low = self.chosen(ends, low)
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

    def chosen(self, ends, low):
        """The lower end after a trial that failed, which may be lower yet."""
        return self.lower(ends)

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
        a, b = self.ordered(a, b)
        d1 = self.mean_slope(a, b)
        square = d1 * d1 - a.slope * b.slope
        if not square >= 0:
            return (low + high) / 2
        d2 = self.root(square)
        t = b.t - (b.t - a.t) * (b.slope + d2 - d1) / (b.slope - a.slope + 2 * d2)
        return t.clamp(low, high)

    def ordered(self, a, b):
        return (a, b) if a.t <= b.t else (b, a)

    def mean_slope(self, a, b):
        return a.slope + b.slope - 3 * (a.loss - b.loss) / (a.t - b.t)

    def root(self, square):
        return square.sqrt()


def number(x):
    return torch.as_tensor(x, dtype=torch.float64)


# Pairs


class NegatesDifference(RightLBFGS):
    """Takes the new gradient from the old, so that no pair is ever remembered."""

    def difference(self, new, old):
        return old - new


class LearnsAll(RightLBFGS):
    """Remembers pairs of any curvature, negative ones too."""

    def convex(self, y, s):
        return True


class LearnsBySize(RightLBFGS):
    """Tests the size of the curvature and not its sign."""

    def convex(self, y, s):
        return abs(y.dot(s)) > 1e-10


class LearnsByGradient(RightLBFGS):
    """Tests the change of the gradient where its product with the step is meant."""

    def convex(self, y, s):
        return y.dot(y) > 1e-10


class LearnsAnyPositive(RightLBFGS):
    """Remembers pairs of any positive curvature, however small."""

    def convex(self, y, s):
        return y.dot(s) > 0


class RefusesSmallCurvature(RightLBFGS):
    """Refuses pairs whose curvature is below 1e-5."""

    def convex(self, y, s):
        return y.dot(s) > 1e-5


class RhoNotInverted(RightLBFGS):
    """Stores the scalar product where its inverse is meant."""

    def rho(self, y, s):
        return y.dot(s).item()


class RhoOfGradients(RightLBFGS):
    """Divides by y y where y s is meant."""

    def rho(self, y, s):
        return (1 / y.dot(y)).item()


class StepWithoutLength(RightLBFGS):
    """Remembers the direction where the step is meant, length and all."""

    def moved(self, state, group):
        return state["d"]


class StepOfFirstTrial(RightLBFGS):
    """Forms the step from lr, not from the length that was gone."""

    def moved(self, state, group):
        return state["d"] * group["lr"]


class DropsNewest(RightLBFGS):
    """Drops the newest pair where the history is full."""

    def forget(self, group, state):
        for name in ("old_dirs", "old_stps", "ro"):
            del state[name][group["history_size"] :]


class IgnoresHistorySize(RightLBFGS):
    """Never forgets a pair."""

    def forget(self, group, state):
        pass


class OnePairMore(RightLBFGS):
    """Forgets the oldest pair one too late."""

    def forget(self, group, state):
        super().forget({**group, "history_size": group["history_size"] + 1}, state)


class OnePairLess(RightLBFGS):
    """Forgets the oldest pair one too early."""

    def forget(self, group, state):
        super().forget({**group, "history_size": max(group["history_size"] - 1, 1)}, state)


class ForgetsAll(RightLBFGS):
    """Starts anew where the history is full."""

    def forget(self, group, state):
        if len(state["ro"]) > group["history_size"]:
            super().forget({**group, "history_size": 1}, state)


class InvertsScale(RightLBFGS):
    """Scales by y y / y s, the curvature and not its inverse."""

    def scale(self, y, s):
        return (y.dot(y) / y.dot(s)).item()


class LongScale(RightLBFGS):
    """Scales by s s / y s, Barzilai and Borwein's other step."""

    def scale(self, y, s):
        return (s.dot(s) / y.dot(s)).item()


class KeepsScale(RightLBFGS):
    """Keeps the scale of the first pair."""

    def learn(self, g, group, state):
        old = state.get("H_diag", 1.0)
        super().learn(g, group, state)
        if old != 1.0:
            state["H_diag"] = old


class ForgetsScale(RightLBFGS):
    """Goes back to scale 1 where a pair is refused."""

    def learn(self, g, group, state):
        state["H_diag"] = 1.0
        super().learn(g, group, state)


class ScalesByRefused(RightLBFGS):
    """Takes the scale of a pair that is refused, too."""

    def convex(self, y, s):
        self.latest = self.scale(y, s)
        return super().convex(y, s)

    def learn(self, g, group, state):
        super().learn(g, group, state)
        if state["n_iter"] > 1:
            state["H_diag"] = self.latest


class SharesGradient(RightLBFGS):
    """Keeps the gradient itself, where there is one parameter, so zero_grad in place clears it."""

    def kept(self, g, state):
        alone = self.parameters()[0]
        return g if len(self.parameters()) > 1 or alone.grad is None else alone.grad.reshape(-1)


class KeepsOldGradient(RightLBFGS):
    """Keeps the gradient before a pair that was refused, to form the next one from."""

    refused = False

    def convex(self, y, s):
        self.refused = not super().convex(y, s)
        return not self.refused

    def kept(self, g, state):
        return state["prev_flat_grad"] if self.refused else g


# The direction


class OldestFirst(RightLBFGS):
    """Runs the two loops the other way round, from the oldest pair to the newest and back."""

    def direction(self, g, state):
        return super().direction(g, state | {name: state[name][::-1] for name in ("old_dirs", "old_stps", "ro")})


class SecondLoopBackwards(RightLBFGS):
    """Runs the second loop from the newest pair to the oldest, like the first."""

    def second_loop(self, r, pairs, alphas):
        return super().second_loop(r, pairs[::-1], alphas[::-1])


class AlphasBackwards(RightLBFGS):
    """Takes the coefficients of the first loop in the order they were made in."""

    def second_loop(self, r, pairs, alphas):
        return super().second_loop(r, pairs, alphas[::-1])


class BetaAlongStep(RightLBFGS):
    """Projects on the step in both loops."""

    def second_loop(self, r, pairs, alphas):
        for (_, s, rho), alpha in zip(pairs, alphas, strict=True):
            r = r + (alpha - rho * s.dot(r).item()) * s
        return r


class AddsBeta(RightLBFGS):
    """Adds beta to alpha."""

    def second_loop(self, r, pairs, alphas):
        for (y, s, rho), alpha in zip(pairs, alphas, strict=True):
            r = r + (alpha + rho * y.dot(r).item()) * s
        return r


class AlongChange(RightLBFGS):
    """Goes along the change of the gradient in the second loop, where the step is meant."""

    def second_loop(self, r, pairs, alphas):
        for (y, _, rho), alpha in zip(pairs, alphas, strict=True):
            r = r + (alpha - rho * y.dot(r).item()) * y
        return r


class WithoutNewest(RightLBFGS):
    """Goes by all pairs but the newest."""

    def direction(self, g, state):
        return super().direction(g, state | {name: state[name][:-1] for name in ("old_dirs", "old_stps", "ro")})


class WithoutScale(RightLBFGS):
    """Starts the second loop unscaled."""

    def direction(self, g, state):
        return super().direction(g, state | {"H_diag": 1.0})


class SinglePrecision(RightLBFGS):
    """Computes the direction in float32, whatever the parameters' dtype."""

    def direction(self, g, state):
        return super().direction(g, state).float().to(g)


# The length


class WholeFirstStep(RightLBFGS):
    """Makes the first step as long as lr says, however large the gradient is."""

    def first_length(self, g, group, state):
        return group["lr"]


class LongFirstStep(RightLBFGS):
    """Normalizes the first step where the gradient is small, too."""

    def first_length(self, g, group, state):
        return group["lr"] * (1 / g.abs().sum()).item() if state["n_iter"] == 1 else group["lr"]


class EuclideanFirstStep(RightLBFGS):
    """Normalizes the first step by the gradient's Euclidean norm."""

    def first_length(self, g, group, state):
        return group["lr"] * min(1.0, (1 / g.norm()).item()) if state["n_iter"] == 1 else group["lr"]


class ShortensEveryStep(RightLBFGS):
    """Normalizes the first iteration of each step, not of the first one alone."""

    def minimize(self, closure, group, state):
        self.begun = state.get("n_iter", 0)
        return super().minimize(closure, group, state)

    def first_length(self, g, group, state):
        return super().first_length(g, group, {"n_iter": state["n_iter"] - self.begun})


class KeepsLength(RightLBFGS):
    """Begins with the length of the iteration before, where lr is due."""

    def first_length(self, g, group, state):
        return super().first_length(g, group, state) if state["n_iter"] == 1 else state["t"]


class CachedLrLBFGS(base.CachedLr, RightLBFGS):
    """Keeps the lr of the first step and ignores a schedule."""


# Budgets


class OneIterationMore(RightLBFGS):
    """Makes one iteration more than max_iter."""

    def options(self, group):
        return {**group, "max_iter": group["max_iter"] + 1}


class OneIterationLess(RightLBFGS):
    """Makes one iteration less than max_iter, but one."""

    def options(self, group):
        return {**group, "max_iter": max(group["max_iter"] - 1, 1)}


class IterationsInAll(RightLBFGS):
    """Counts the iterations of all steps together against max_iter."""

    def minimize(self, closure, group, state):
        left = max(group["max_iter"] - state.get("n_iter", 0), 1)
        return super().minimize(closure, {**group, "max_iter": left}, state)


class EvaluatesLast(RightLBFGS):
    """Evaluates once more after the last fixed step."""

    def leap(self, closure, start, d, last):
        return super().leap(closure, start, d, False)


class IgnoresMaxEval(RightLBFGS):
    """Evaluates as often as max_iter and the line search like."""

    def evaluations(self, group):
        return 10**9


class OneEvaluationMore(RightLBFGS):
    """Goes on where exactly max_eval evaluations are spent."""

    def evaluations(self, group):
        return super().evaluations(group) + 1


class DefaultMaxEval(RightLBFGS):
    """Takes 25 for max_eval where it is left open, whatever max_iter is."""

    def evaluations(self, group):
        return group["max_eval"] or 25


class RoundsMaxEvalUp(RightLBFGS):
    """Rounds max_iter * 5 / 4 up."""

    def evaluations(self, group):
        return group["max_eval"] or -(-group["max_iter"] * 5 // 4)


class EvaluationsInAll(RightLBFGS):
    """Counts the evaluations of all steps together against max_eval."""

    def minimize(self, closure, group, state):
        self.earlier = state.get("func_evals", 0)
        return super().minimize(closure, group, state)

    def evaluations(self, group):
        return super().evaluations(group) - self.earlier


class ForgetsFirstEvaluation(RightLBFGS):
    """Does not spend the first evaluation of a step."""

    def iterate(self, closure, loss, g, group, state):
        super().iterate(closure, loss, g, {**group, "max_eval": self.evaluations(group) + 1}, state)


# Counts


class CountsIterations(RightLBFGS):
    """Counts one evaluation for each line search."""

    def count(self, state, evaluated):
        super().count(state, min(evaluated, 1))


class CountsThisStep(RightLBFGS):
    """Begins to count evaluations with each step anew."""

    def begin(self, state):
        super().begin(state)
        state["func_evals"] = 0


class LeavesOutFirst(RightLBFGS):
    """Does not count the first evaluation of a step."""

    def minimize(self, closure, group, state):
        returned = super().minimize(closure, group, state)
        self.count(state, -1)
        return returned


class RestartsEveryStep(RightLBFGS):
    """Begins to count iterations with each step anew, and so forgets all pairs."""

    def begin(self, state):
        super().begin(state)
        state["n_iter"] = 0


class CountsSteps(RightLBFGS):
    """Counts an iteration of a step that finds a minimum at once."""

    def minimize(self, closure, group, state):
        before = state.get("n_iter", 0)
        returned = super().minimize(closure, group, state)
        state["n_iter"] = max(state["n_iter"], before + 1)
        return returned


# Tolerances


class EuclideanGradient(RightLBFGS):
    """Holds the gradient's Euclidean norm against tolerance_grad."""

    def stationary(self, g, group):
        return g.norm() <= group["tolerance_grad"]


class SumOfGradient(RightLBFGS):
    """Holds the sum of the gradient's absolute values against tolerance_grad."""

    def stationary(self, g, group):
        return g.abs().sum() <= group["tolerance_grad"]


class SignedGradient(RightLBFGS):
    """Holds the largest element of the gradient, not its size, against tolerance_grad."""

    def stationary(self, g, group):
        return (g.max().item() if g.numel() else 0.0) <= group["tolerance_grad"]


class BelowGradientTolerance(RightLBFGS):
    """Goes on where the gradient is exactly as large as tolerance_grad, zero for one."""

    def stationary(self, g, group):
        return self.largest(g) < group["tolerance_grad"]


class NeverStationary(RightLBFGS):
    """Does not look at tolerance_grad."""

    def stationary(self, g, group):
        return False


class StationaryAtFirstAlone(RightLBFGS):
    """Looks at tolerance_grad at the first evaluation of a step alone."""

    def iterate(self, closure, loss, g, group, state):
        super().iterate(closure, loss, g, {**group, "tolerance_grad": float("-inf")}, state)


class StationaryLaterAlone(RightLBFGS):
    """Iterates from a minimum, and looks at tolerance_grad after that."""

    def minimize(self, closure, group, state):
        returned, g = self.evaluate(closure)
        self.begin(state)
        self.count(state, 1)
        self.iterate(closure, float(returned), g, group, state)
        return returned


class AscendsAnyway(RightLBFGS):
    """Moves along a direction that the loss does not fall in."""

    def ascends(self, g, d, group):
        return False


class AscendsAtZero(RightLBFGS):
    """Holds the slope against 0, not against tolerance_change."""

    def ascends(self, g, d, group):
        return g.dot(d) > 0


class SmallMoves(RightLBFGS):
    """Goes on after moves within tolerance_change."""

    def stalled(self, moved, change, group):
        return abs(change) < group["tolerance_change"]


class SmallChanges(RightLBFGS):
    """Goes on after changes of the loss within tolerance_change."""

    def stalled(self, moved, change, group):
        return self.largest(moved) <= group["tolerance_change"]


class StalledInBoth(RightLBFGS):
    """Stops only where both the move and the change of the loss are small."""

    def stalled(self, moved, change, group):
        return self.largest(moved) <= group["tolerance_change"] and abs(change) < group["tolerance_change"]


class EuclideanMove(RightLBFGS):
    """Holds the move's Euclidean norm against tolerance_change."""

    def stalled(self, moved, change, group):
        return moved.norm() <= group["tolerance_change"] or abs(change) < group["tolerance_change"]


class SignedChange(RightLBFGS):
    """Stops at any decrease of the loss: the change lacks its absolute value."""

    def stalled(self, moved, change, group):
        return self.largest(moved) <= group["tolerance_change"] or change < group["tolerance_change"]


# Returned and kept


class ReturnsLastLoss(RightLBFGS):
    """Returns what the closure returned last."""

    def evaluate(self, closure):
        self.last, g = super().evaluate(closure)
        return self.last, g

    def minimize(self, closure, group, state):
        super().minimize(closure, group, state)
        return self.last


class KeepsNewLoss(RightLBFGS):
    """Keeps the loss after the move as the one before it."""

    def stalled(self, moved, change, group):
        self.state[self.parameters()[0]]["prev_loss"] += change
        return super().stalled(moved, change, group)


class EvaluatesWithoutGrad(RightLBFGS):
    """Calls its closure with gradients disabled."""

    def evaluate(self, closure):
        returned = closure()
        return returned, torch.cat([self.gradient(p) for p in self.parameters()])


class PairsAside(RightLBFGS):
    """Keeps its pairs beside the state as well, and goes by those, which are gone after load_state_dict."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.aside = []

    def remember(self, y, s, state):
        super().remember(y, s, state)
        self.aside.append((y, s, state["ro"][-1]))

    def direction(self, g, state):
        y, s, rho = zip(*self.aside[-len(state["ro"]) :], strict=True) if self.aside and state["ro"] else ((), (), ())
        return super().direction(g, state | {"old_dirs": y, "old_stps": s, "ro": rho})


class ForgetsStateLBFGS(base.ForgetsState, RightLBFGS):
    """Loads the options of a state_dict and not the state."""


class ForgetsOptionsLBFGS(base.ForgetsOptions, RightLBFGS):
    """Loads the state of a state_dict and not the options."""


# Parameters as one vector


class ReversesGradients(RightLBFGS):
    """Joins the gradients in the reverse order of the parameters."""

    def evaluate(self, closure):
        returned, _ = super().evaluate(closure)
        return returned, torch.cat([self.gradient(p) for p in reversed(self.parameters())])


class ReversesParameters(RightLBFGS):
    """Joins the parameters in reverse order, and their state with them."""

    def parameters(self):
        return super().parameters()[::-1]


class LeavesOutAbsent(RightLBFGS):
    """Moves up the gradients behind a parameter that has none."""

    def evaluate(self, closure):
        returned, g = super().evaluate(closure)
        present = torch.cat([self.gradient(p) for p in self.parameters() if p.grad is not None] or [g[:0]])
        return returned, torch.cat([present, g.new_zeros(g.numel() - present.numel())])


class ReadsMemory(RightLBFGS):
    """Reads gradients in the order of their memory, which is not row-major where they are strided."""

    def gradient(self, p):
        return super().gradient(p) if p.grad is None else p.grad.as_strided((p.numel(),), (1,))


class MovesCopy(RightLBFGS):
    """Moves a row-major view, which is a copy where a parameter is strided."""

    def move(self, x):
        for p, part in zip(self.parameters(), x.split([p.numel() for p in self.parameters()]), strict=True):
            p.contiguous().view(-1).copy_(part)


class MovesMemory(RightLBFGS):
    """Moves parameters in the order of memory, whatever lies there."""

    def move(self, x):
        for p, part in zip(self.parameters(), x.split([p.numel() for p in self.parameters()]), strict=True):
            p.as_strided((p.numel(),), (1,)).copy_(part)


class NeedsElements(RightLBFGS):
    """Raises where there is no element, and so no largest."""

    def largest(self, x):
        return x.abs().max().item()


# The line search


class SwapsConstants(RightLBFGS):
    """Asks for nine tenths of the decrease and a ten-thousandth of the slope."""

    def too_high(self, new, start):
        return new.loss > start.loss + 0.9 * new.t * start.slope

    def flat(self, new, start):
        return abs(new.slope) <= -1e-4 * start.slope


class WeakWolfe(RightLBFGS):
    """Takes a slope that is steep upwards for flat, as the weak conditions do."""

    def flat(self, new, start):
        return new.slope >= 0.9 * start.slope


class LooseSlope(RightLBFGS):
    """Takes the slope itself for flat enough: c2 = 1."""

    def flat(self, new, start):
        return abs(new.slope) <= -start.slope


class DecreaseWithoutLength(RightLBFGS):
    """Asks for the same decrease of a step of any length."""

    def too_high(self, new, start):
        return new.loss > start.loss + 1e-4 * start.slope


class AnyDecrease(RightLBFGS):
    """Is content with any decrease: c1 = 0."""

    def too_high(self, new, start):
        return new.loss > start.loss


class NotLowEnough(RightLBFGS):
    """Takes a loss of NaN for too high."""

    def too_high(self, new, start):
        return not new.loss <= start.loss + 1e-4 * new.t * start.slope


class CubicWithWrongSign(RightLBFGS):
    """Adds the rise in the cubic interpolation where it is to be subtracted."""

    def mean_slope(self, a, b):
        return a.slope + b.slope + 3 * (a.loss - b.loss) / (a.t - b.t)


class CubicMaximum(RightLBFGS):
    """Takes the other root, which is the cubic's maximum."""

    def root(self, square):
        return -square.sqrt()


class CubicInGivenOrder(RightLBFGS):
    """Interpolates with the ends as they come, not the smaller step first."""

    def ordered(self, a, b):
        return a, b


class CubicUnbounded(RightLBFGS):
    """Extrapolates as far as the cubic says."""

    def longer(self, last, new):
        return number(float("-inf")), number(float("inf"))


class CubicWithinEnds(RightLBFGS):
    """Keeps an extrapolation between the two points that it starts from."""

    def longer(self, last, new):
        return min(last.t, new.t), max(last.t, new.t)


class GrowsLess(RightLBFGS):
    """Extrapolates to at most twice the step."""

    def longer(self, last, new):
        return new.t + 0.01 * (new.t - last.t), 2 * new.t


class GrowsFromStart(RightLBFGS):
    """Extrapolates by at least a hundredth of the step, not of its last increase."""

    def longer(self, last, new):
        return 1.01 * new.t, 10 * new.t


class Bisects(RightLBFGS):
    """Halves the bracket and does not interpolate."""

    def cubic(self, a, b, low, high):
        return (low + high) / 2


class OneTrialMore(RightLBFGS):
    """Makes one trial more than the budget leaves."""

    def search(self, closure, loss, g, d, t, most):
        return super().search(closure, loss, g, d, t, most + 1)


class OneTrialLess(RightLBFGS):
    """Makes one trial less than the budget leaves."""

    def search(self, closure, loss, g, d, t, most):
        return super().search(closure, loss, g, d, t, most - 1)


class SpendsBracketing(RightLBFGS):
    """Gives zoom as many trials as bracketing had."""

    def zoom(self, at, start, ends, spent, most, width):
        found, zoomed = super().zoom(at, start, ends, 0, most, width)
        return found, spent + zoomed


class StartsAtOne(RightLBFGS):
    """Begins each line search with length 1, whatever lr is."""

    def search(self, closure, loss, g, d, t, most):
        return super().search(closure, loss, g, d, 1.0, most)


class BracketsFromSecond(RightLBFGS):
    """Ends bracketing at the second trial that is no lower than the one before, as the book does."""

    def rises(self, last, new, extrapolated):
        return extrapolated > 0 and new.loss >= last.loss


class NeverRises(RightLBFGS):
    """Goes on bracketing where the loss is no lower than at the trial before."""

    def rises(self, last, new, extrapolated):
        return False


class BracketsLastTwo(RightLBFGS):
    """Out of trials, brackets between the last two and not from the start on."""

    def widest(self, start, last, new):
        return [last, new]


class HigherEnd(RightLBFGS):
    """Takes the end with the larger loss for the lower one."""

    def lower(self, ends):
        return 1 - super().lower(ends)


class KeepsLowerEnd(RightLBFGS):
    """After a trial that fails, keeps the lower end, which the new one may be below."""

    def chosen(self, ends, low):
        return low


class NeverShifts(RightLBFGS):
    """Never moves the higher end to where the lower was."""

    def shift(self, ends, low, new):
        ends[low] = new


class AlwaysShifts(RightLBFGS):
    """Always moves the higher end to where the lower was."""

    def shift(self, ends, low, new):
        ends[1 - low], ends[low] = ends[low], new


class ShiftsTheOtherWay(RightLBFGS):
    """Moves the higher end where the loss falls towards it."""

    def shift(self, ends, low, new):
        if new.slope * (ends[1 - low].t - ends[low].t) < 0:
            ends[1 - low] = ends[low]
        ends[low] = new


class NeverInside(RightLBFGS):
    """Leaves a trial where the interpolation puts it, at an end of the bracket too."""

    def inside(self, t, left, right, close):
        return t, False


class InsideAtOnce(RightLBFGS):
    """Moves a trial inside the first time it is close to an end."""

    def inside(self, t, left, right, close):
        return super().inside(t, left, right, True)


class InsideAtTheEndAlone(RightLBFGS):
    """Moves a trial inside that reaches an end, but not one that is close to it again."""

    def inside(self, t, left, right, close):
        return super().inside(t, left, right, False)


class InsideAtTheOtherEnd(RightLBFGS):
    """Moves a trial that reaches an end to the other one."""

    def inside(self, t, left, right, close):
        moved, now = super().inside(t, left, right, close)
        return (moved if moved == t else left + right - moved), now


class NarrowInLength(RightLBFGS):
    """Measures the bracket in step lengths, not in parameter units."""

    def zoom(self, at, start, ends, spent, most, width):
        return super().zoom(at, start, ends, spent, most, 1.0)


class NarrowByTolerance(RightLBFGS):
    """Holds the bracket's width against tolerance_change, which is a number of its own."""

    def zoom(self, at, start, ends, spent, most, width):
        tolerance = self.param_groups[0]["tolerance_change"]
        return super().zoom(at, start, ends, spent, most, width * 1e-9 / tolerance if tolerance else float("inf"))


class StaysAtLastTrial(RightLBFGS):
    """Leaves the parameters at the last trial, not at the best."""

    def settle(self, x, found, d):
        pass


class EvaluatesFound(RightLBFGS):
    """Evaluates once more at the point that the line search found."""

    def search(self, closure, loss, g, d, t, most):
        found, spent = super().search(closure, loss, g, d, t, most)
        _, gradient = self.evaluate(closure)
        return found._replace(gradient=gradient), spent


class TakesLastGradient(RightLBFGS):
    """Goes on with the gradient of the last trial, not of the one that was found."""

    def evaluate(self, closure):
        returned, self.latest = super().evaluate(closure)
        return returned, self.latest

    def search(self, closure, loss, g, d, t, most):
        found, spent = super().search(closure, loss, g, d, t, most)
        return found._replace(gradient=self.latest), spent


class SearchesFromTrial(RightLBFGS):
    """Measures each trial from the one before, not from where the search started."""

    def trial(self, closure, x, t, d):
        return super().trial(closure, self.position(), t, d)


# What no input can tell


class ClonesGradientLBFGS(RightLBFGS):
    """Keeps a clone of the gradient."""

    def kept(self, g, state):
        return g.clone()


class CommutesProducts(RightLBFGS):
    """Multiplies the step by the change of the gradient, not the change by the step."""

    def convex(self, y, s):
        return super().convex(s, y)

    def rho(self, y, s):
        return super().rho(s, y)


class TestsChangeFirst(RightLBFGS):
    """Looks at the change of the loss before it looks at the move."""

    def stalled(self, moved, change, group):
        return abs(change) < group["tolerance_change"] or self.largest(moved) <= group["tolerance_change"]


#: Right ones that look wrong, and why no input can tell.
EQUIVALENT = {
    ClonesGradientLBFGS: "the joined gradient is a tensor of its own already, which nobody writes to",
    CommutesProducts: "a scalar product is the sum of the same products in the same order",
    TestsChangeFirst: "either ends the step, and neither test changes anything",
}
#: What must find a fault that is no mere deviation from the reference.
_OTHERWISE = {
    SharesGradient: ("between-steps",),
    ReturnsLastLoss: ("closure",),
    EvaluatesWithoutGrad: ("closure",),
    PairsAside: ("save-load-continue",),
    ForgetsStateLBFGS: ("save-load-continue",),
    ForgetsOptionsLBFGS: ("save-load-continue", "options-hold"),
    MovesMemory: ("memory-beside",),
    NeedsElements: ("completes",),
}
#: The wrong ones, and the checks of which one must find each.
FAULTS = {
    cls: _OTHERWISE.get(cls, DEVIATES)
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, RightLBFGS) and cls not in (RightLBFGS, *EQUIVALENT)
}
