"""PyTorch's tests of its own optimizers, asked of any class that is like one of them.

Each function here imitates the test of its name in ``TestOptimRenewed`` of PyTorch's ``test/test_optim.py`` (2.13): its model, steps,
options and comparisons. It raises where the test would fail. A class under test is in the place of the ``foreach`` implementation,
and ``torch.optim`` with ``foreach=False`` is the loop that it is compared with. Where an earlier release of a test asked more, so
does the function. All data come from torch's generator, which the caller seeds.

Left out is what a class need not have (complex parameters, and the flags ``foreach``, ``fused``, ``capturable`` and ``differentiable``), or
what is about other releases of ``torch.optim`` (``test_can_load_older_state_dict``, ``test_load_nontensor_step``), its messages (``test_errors``)
or its users (``test_non_empty_state``); and what needs an accelerator.
"""

from __future__ import annotations

import copy
import inspect
import io
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from stepcheck.harness.power.optim_db import only_matrices, only_sparse, options, requires_closure, schedules

Make = Callable[..., Any]

#: ``toleranceOverride`` of test_foreach_matches_forloop: rtol and atol. All others have what assert_close has for float64.
_FOREACH_TOLERANCES = {"RAdam": (1.1e-7, 1.5e-7)}


def torch_class(like: str) -> Make:
    """The class of ``torch.optim``, with ``foreach=False`` where it has that."""
    made = getattr(torch.optim, like)
    loop = {"foreach": False} if "foreach" in inspect.signature(made).parameters else {}
    return lambda params, **more: made(params, **loop, **more)


def sparsify(params: Iterable[torch.Tensor]) -> None:
    """Brings gradients into the sparse layout, as these tests do for SparseAdam."""
    for p in params:
        if p.grad is not None:
            p.grad = p.grad.to_sparse()


def advance(optimizer: Any, like: str, evaluate: Callable[[], Any]) -> Any:
    """One step: the optimizer calls the closure itself where it has to."""
    if requires_closure(like):
        return optimizer.step(evaluate)
    loss = evaluate()
    optimizer.step()
    return loss


def require(truth: bool, what: str) -> None:
    """An assertion that ``python -O`` keeps."""
    if not truth:
        raise AssertionError(what)


def _assert_equal(actual: Any, expected: Any, rtol: float | None = None, atol: float | None = None) -> None:
    """``TestCase.assertEqual``: the tolerances of assert_close for the dtype, and NaN equal to NaN, whatever device and strides."""
    if isinstance(actual, torch.Tensor) and isinstance(expected, torch.Tensor):
        torch.testing.assert_close(
            actual, expected, rtol=rtol, atol=atol, equal_nan=True, check_device=False, check_stride=False
        )
    elif isinstance(expected, Mapping):
        require(
            isinstance(actual, Mapping) and actual.keys() == expected.keys(), f"{actual} has other keys than {expected}"
        )
        for key, value in expected.items():
            _assert_equal(actual[key], value)
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        require(isinstance(actual, Sequence) and len(actual) == len(expected), f"{actual} is not as long as {expected}")
        for a, e in zip(actual, expected, strict=True):
            _assert_equal(a, e)
    elif isinstance(expected, float):
        _assert_equal(torch.tensor(float(actual)), torch.tensor(expected))  # numbers have the tolerances of float32
    else:
        require(bool(actual == expected), f"{actual} is not {expected}")


class _Affine:
    """The problem of most of these tests: a convex one."""

    def __init__(self, like: str, rows: int = 10, columns: int = 5, *, strided: bool = False) -> None:
        self.like = like
        shapes = (rows, columns), (rows,)
        values = [torch.randn(*shape, 2)[..., 0] if strided else torch.randn(shape) for shape in shapes]
        self.weight, self.bias = (Parameter(v) for v in values)
        self.input = torch.randn(columns)

    @property
    def params(self) -> list[Parameter]:
        return [self.weight] if only_matrices(self.like) else [self.weight, self.bias]

    def copied(self) -> _Affine:
        return copy.deepcopy(self)

    def closure(self, optimizer: Any) -> Callable[[], torch.Tensor]:
        def evaluate() -> torch.Tensor:
            optimizer.zero_grad()
            outputs = self.weight.mv(self.input)
            loss = (outputs if only_matrices(self.like) else outputs + self.bias).pow(2).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            if only_sparse(self.like):
                sparsify(self.params)
            return loss.detach()

        return evaluate


def _require_direction(before: float, after: float, given: Mapping[str, Any]) -> None:
    up = given.get("maximize", False)
    require(after > before if up else after < before, f"the loss went from {before} to {after} with {dict(given)}")


def _schedule(schedulers: Sequence[Any], loss: Any) -> None:
    for scheduler in schedulers:
        scheduler.step(*([loss] if isinstance(scheduler, ReduceLROnPlateau) else []))


# Beside torch.optim


def _net() -> torch.nn.Sequential:
    layers = torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid()
    return torch.nn.Sequential(*layers).double()


def foreach_matches_forloop(make: Make, like: str) -> None:
    """``_test_derived_optimizers``, for SparseAdam and LBFGS as well, which have no ``foreach`` of their own.

    Not for Muon: PyTorch compares no two implementations of it, "due to bfloat16 and iterative process" (``optim_db``).
    """
    if only_matrices(like):
        return
    points = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64).reshape(3, 2)
    for given in options(make, like):
        model = _net()
        models = [model, copy.deepcopy(model)]
        optimizers = []
        for cls, model in zip((torch_class(like), make), models, strict=True):
            last = torch.zeros((), dtype=torch.float64, requires_grad=True)
            last.grad = torch.rand_like(last)
            optimizers.append(cls([*model.parameters(), last], **copy.deepcopy(given)))
        _compare_between(models, optimizers, like, points)


def _compare_between(
    models: Sequence[torch.nn.Sequential], optimizers: Sequence[Any], like: str, points: torch.Tensor
) -> None:
    """Compares after each step, and goes on from the same parameters and state."""
    tolerances = _FOREACH_TOLERANCES.get(like, (None, None))
    for step in range(7):  # from the 6th on, RAdam's is another
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            if step in (3, 5):
                model[2].requires_grad_(step == 5)

            def evaluate(model: torch.nn.Sequential = model, *, absent: bool = step == 2) -> torch.Tensor:
                loss: torch.Tensor = model(points).sum()
                if not absent:
                    loss.backward()  # type: ignore[no-untyped-call]
                if only_sparse(like):
                    sparsify(model.parameters())
                return loss

            advance(optimizer, like, evaluate)
        expected, found = optimizers
        for e, f in zip(models[0].parameters(), models[1].parameters(), strict=True):
            _compare_and_set(f, e, *tolerances)
            known, own = expected.state.get(e, {}), found.state.get(f, {})
            for name, value in known.items():
                if isinstance(value, torch.Tensor) and isinstance(
                    own.get(name), torch.Tensor
                ):  # or it has another name
                    _compare_and_set(own[name], value, *tolerances)


def _compare_and_set(found: torch.Tensor, expected: torch.Tensor, rtol: float | None, atol: float | None) -> None:
    """``TensorTracker.pop_check_set``."""
    _assert_equal(found, expected, rtol, atol)
    with torch.no_grad():
        found.copy_(expected)


# Directions


def forloop_goes_right_direction(make: Make, like: str, *, with_lrsched: bool = True) -> None:
    """With dense and with strided parameters, and with lr as it is or scheduled."""
    for strided in (False, True):
        for of_lr in ((), *(schedules(like) if with_lrsched else ())):
            for given in options(make, like):
                problem = _Affine(like, strided=strided)
                optimizer = make(problem.params, **given)
                schedulers = [s(optimizer) for s in of_lr]
                evaluate = problem.closure(optimizer)
                before = evaluate().item()
                for _ in range(20):
                    _schedule(schedulers, advance(optimizer, like, evaluate))
                _require_direction(before, evaluate().item(), given)


def param_group_with_lrscheduler_goes_right_direction(make: Make, like: str) -> None:
    if requires_closure(like):
        return
    for of_lr in schedules(like):
        problem = _Affine(like)
        first, *rest = problem.params
        groups = [{"params": [first]}, *({"params": [p], "lr": 0.01} for p in rest)]
        optimizer = make(groups)
        schedulers = [s(optimizer) for s in of_lr]
        evaluate = problem.closure(optimizer)
        before = evaluate().item()
        for _ in range(20):
            _schedule(schedulers, optimizer.step(evaluate))
        _require_direction(before, evaluate().item(), {})


def param_groups_weight_decay(make: Make, like: str) -> None:
    if requires_closure(like):
        return
    for given in options(make, like):
        problem = _Affine(like)
        first, *rest = problem.params
        groups = [{"params": [first], **given}, *({"params": [p], **given, "weight_decay": 0.0} for p in rest)]
        optimizer = make(groups)
        evaluate = problem.closure(optimizer)
        before = evaluate().item()
        for _ in range(20):
            loss = evaluate()
            optimizer.step()
        _require_direction(before, loss.item(), given)


def param_groups_lr(make: Make, like: str) -> None:
    if requires_closure(like):
        return
    for given in options(make, like):
        outer = {"lr": 1e-28, **({"step_sizes": (0, 50)} if like == "Rprop" else {})}
        problem = _Affine(like)
        irrelevant = Parameter(torch.randn(2, 2))
        before = irrelevant.detach().clone()
        groups = [{"params": problem.params, "lr": 1e-3, **given}, {"params": [irrelevant]}]
        optimizer = make(groups, **outer)
        evaluate = problem.closure(optimizer)
        first = evaluate().item()
        for _ in range(20):
            loss = evaluate()
            irrelevant.grad = torch.rand_like(irrelevant)
            if only_sparse(like):
                sparsify([irrelevant])
            optimizer.step()
        _require_direction(first, loss.item(), given)
        _assert_equal(irrelevant.detach(), before)


def tensor_lr(make: Make, like: str) -> None:
    """Of those that have one among their options: that others take a tensor is torch's own affair."""
    if not any(isinstance(given.get("lr"), torch.Tensor) for given in options(make, like)):
        return
    lr = 1.0 if requires_closure(like) else 1e-3
    for dimensions, given in itertools.product((0, 1), options(make, like)):
        problem = _Affine(like)
        other = problem.copied()
        optimizer = make(problem.params, **{**given, "lr": lr})
        try:
            by_tensor = make(other.params, **{**given, "lr": torch.tensor(lr).reshape([1] * dimensions)})
        except ValueError as error:
            require("lr as a Tensor is not supported" in str(error), str(error))
            continue
        for _ in range(5):
            advance(optimizer, like, problem.closure(optimizer))
            advance(by_tensor, like, other.closure(by_tensor))
            _assert_equal(other.params, problem.params)


def _rosenbrock(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def rosenbrock_sparse(make: Make, like: str) -> None:
    """For SparseAdam alone, as a class need not take sparse gradients; and to the minimum as well."""
    if not only_sparse(like):
        return
    start, minimum = torch.tensor([1.5, 1.5]), torch.ones(2)
    for given in options(make, like):
        if "lr" in given:
            continue
        p = Parameter(start.clone())
        optimizer = make([p], **{**given, "lr": 4e-2})
        for step in range(1800):
            optimizer.step(partial(_coordinate, optimizer, p, step))
        found = p.detach()
        if given.get("maximize", False):
            require(bool(_rosenbrock(*found) >= _rosenbrock(*start)), f"the minimum was sought with {given}")
        else:
            require(bool(found.dist(minimum) <= start.dist(minimum)), f"{found} is further from the minimum")


def _coordinate(optimizer: Any, p: Parameter, step: int) -> torch.Tensor:
    """The gradient of one coordinate in turn, in two entries of a sparse tensor that is not coalesced."""
    optimizer.zero_grad()
    x, y = p.detach()
    if step % 2:
        d = -400 * x * (y - x**2) - 2 * (1 - x)
        index, entries = 0, [d / 4, d - d / 4]
    else:
        d = 200 * (y - x**2)
        index, entries = 1, [d - d / 4, d / 4]
    p.grad = torch.sparse_coo_tensor(torch.tensor([[index, index]]), torch.stack(entries), (2,))
    return _rosenbrock(x, y)


# Steps that do nothing


def step_is_noop_when_params_have_no_grad(make: Make, like: str) -> None:
    params = [torch.randn(2, 3) for _ in range(2)]
    before = copy.deepcopy(params)
    for given in options(make, like):
        make(params, **given).step(lambda: torch.tensor([1.0]))
        _assert_equal(params, before)


def step_is_noop_for_zero_grads(make: Make, like: str) -> None:
    if like == "ASGD":
        return  # it decays by lambd in any case
    for given in options(make, like):
        if given.get("weight_decay", 0) != 0:
            continue
        if like in ("AdamW", "Muon"):  # which decay by default
            given["lr"] = torch.tensor(1e-5) if isinstance(given.get("lr"), torch.Tensor) else 1e-5
        p = torch.randn((5, 1), requires_grad=True)
        before = p.detach().clone()
        optimizer = make([p], **given)
        p.grad = (
            torch.sparse_coo_tensor(torch.empty((1, 0)), torch.empty((0, 1)), (5, 1))
            if only_sparse(like)
            else torch.zeros_like(p)
        )
        optimizer.step(lambda: torch.tensor([1.0]))
        _assert_equal(p.detach(), before)


# State


def optimizer_can_be_printed(make: Make, like: str) -> None:
    for given in options(make, like):
        repr(make([Parameter(torch.randn(2, 3)) for _ in range(2)], **given))


def _named(params: Sequence[Parameter], named: bool) -> list[Any]:
    return [(f"name{n}", p) for n, p in enumerate(params)] if named else list(params)


def _without_names(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = copy.deepcopy(dict(state_dict))
    for group in found["param_groups"]:
        group.pop("param_names", None)
    return found


def state_dict_deterministic(make: Make, like: str) -> None:
    for named, other_named in itertools.product((True, False), repeat=2):
        problem = _Affine(like, 2, 3)
        for given in options(make, like):
            optimizer = make(_named(problem.params, named), **given)
            for _ in range(10):
                advance(optimizer, like, problem.closure(optimizer))
            other_problem = problem.copied()
            other = make(_named(other_problem.params, other_named), **copy.deepcopy(given))
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for _ in range(10):
                advance(optimizer, like, problem.closure(optimizer))
                advance(other, like, other_problem.closure(other))
                _assert_equal(other_problem.params, problem.params)
            _assert_equal(_without_names(other.state_dict()), _without_names(optimizer.state_dict()))
            other.param_groups.extend(other.param_groups)
            last, expected = (_without_names(o.state_dict())["param_groups"][-1] for o in (other, optimizer))
            _assert_equal(last, expected)


def can_load_from_to_named_state_dict(make: Make, like: str) -> None:
    if only_sparse(like):
        return
    for named, other_named, given in itertools.product((True, False), (True, False), options(make, like)):
        if only_matrices(like):
            model: torch.nn.Module = torch.nn.Linear(10, 4, bias=False)
            points = torch.rand(10)
        else:
            model = torch.nn.Sequential(torch.nn.Conv2d(4, 2, 1, stride=2), torch.nn.BatchNorm2d(2))
            points = torch.rand(1, 4, 16, 16)
        names = [name for name, _ in model.named_parameters()]

        def live(
            steps: int, *, named: bool, loaded: Any = None, model: Any = model, points: Any = points, given: Any = given
        ) -> Any:
            optimizer = make(model.named_parameters() if named else model.parameters(), **copy.deepcopy(given))
            if loaded is not None:
                optimizer.load_state_dict(loaded)

            def evaluate() -> torch.Tensor:
                optimizer.zero_grad()
                loss: torch.Tensor = model(points).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            for _ in range(steps):
                advance(optimizer, like, evaluate)
            return optimizer

        saved = copy.deepcopy(live(3, named=named).state_dict())
        other = live(1, named=other_named, loaded=saved)
        if named or other_named:
            _assert_equal(other.state_dict()["param_groups"][0]["param_names"], names)


def save_load_equality_with_weights_only(make: Make, like: str) -> None:
    for named, given in itertools.product((True, False), options(make, like)):
        problem = _Affine(like, 2, 3)
        optimizer = make(_named(problem.params, named), **given)
        for _ in range(3):
            optimizer.step(problem.closure(optimizer))
        saved = optimizer.state_dict()
        file = io.BytesIO()
        torch.save(saved, file)
        for weights_only in (False, True):
            file.seek(0)
            _assert_equal(torch.load(file, weights_only=weights_only), saved)


def deepcopy_copies_all_public_attrs(make: Make, like: str) -> None:
    params = [Parameter(torch.randn(2, 3)) for _ in range(2)]
    for p in params:
        p.grad = torch.rand_like(p)
    if only_sparse(like):
        sparsify(params)

    def public(optimizer: Any) -> list[str]:
        return sorted(name for name in vars(optimizer) if not name.startswith("_"))

    for given in options(make, like):
        optimizer = make(params, **given)
        for _ in range(3):
            advance(optimizer, like, lambda: 1.0)
        copied = public(copy.deepcopy(optimizer))
        require(copied == public(optimizer), f"a copy has {copied}, the original {public(optimizer)}")


# Hooks


def _note(optimizer: Any) -> None:
    optimizer.state["test"] = 1


def _tell(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
    state_dict["told"] = state_dict["state"].pop("test", 0) == 1
    return state_dict


def state_dict_hooks(make: Make, like: str) -> None:
    """``test_state_dict_pre_hook``, ``..._post_hook`` and ``..._pre_post_hook``."""
    for given in options(make, like):
        for before, after in ((True, False), (False, True), (True, True)):
            optimizer = make([torch.rand(2, 3, requires_grad=True)], **copy.deepcopy(given))
            if before:
                optimizer.register_state_dict_pre_hook(_note)
            if after:
                optimizer.register_state_dict_post_hook(_tell)
            found = optimizer.state_dict()
            if after:
                require(found["told"] is before, "the hook before state_dict() was told wrongly by the one after it")
                require("test" not in found["state"], "what the hook after state_dict() took away is there")
            else:
                require(found["state"]["test"] == 1, "the hook before state_dict() was not called")


def load_state_dict_hooks(make: Make, like: str) -> None:
    """``test_load_state_dict_pre_hook_and_prepend``, ``..._post_hook`` and ``..._pre_post_hook``."""

    def in_place(_: Any, state_dict: dict[str, Any]) -> None:
        state_dict["param_groups"][0]["lr"] = 0.002

    def by_copy(_: Any, state_dict: dict[str, Any]) -> dict[str, Any]:
        mine = copy.deepcopy(state_dict)
        mine["param_groups"][0]["lr"] = 0.003
        return mine

    def afterwards(optimizer: Any) -> None:
        optimizer.state["by_copy"] = bool(optimizer.param_groups[0]["lr"] == 0.003)
        optimizer.state["afterwards"] = True

    for given in options(make, like):
        optimizer = make([torch.rand(2, 3, requires_grad=True)], **copy.deepcopy(given))
        saved = optimizer.state_dict()
        optimizer.register_load_state_dict_pre_hook(in_place)
        optimizer.load_state_dict(saved)
        require(optimizer.param_groups[0]["lr"] == 0.002, "the hook before load_state_dict() changed nothing")
        optimizer.register_load_state_dict_pre_hook(by_copy, prepend=True)
        optimizer.load_state_dict(saved)
        require(optimizer.param_groups[0]["lr"] == 0.002, "the hook that was prepended was called last")
        for before in (False, True):
            optimizer = make([torch.rand(2, 3, requires_grad=True)], **copy.deepcopy(given))
            if before:
                optimizer.register_load_state_dict_pre_hook(by_copy)
            optimizer.register_load_state_dict_post_hook(afterwards)
            optimizer.load_state_dict(optimizer.state_dict())
            require(
                optimizer.state["by_copy"] is before,
                "the dictionary of the hook before load_state_dict() was not taken",
            )
            require(optimizer.state["afterwards"], "the hook after load_state_dict() was not called")


def step_hooks(make: Make, like: str) -> None:
    """``test_step_pre_hook``, ``test_step_post_hook`` and ``test_step_all_hooks``."""
    closure = (lambda: 1.0) if requires_closure(like) else None
    seen: list[str] = []

    def saying(word: str) -> Callable[..., None]:
        return lambda *_: seen.append(word)

    for given in options(make, like):
        params = [torch.ones(1, 2) if only_matrices(like) else torch.ones(2)]  # without a gradient
        seen.clear()
        optimizer, other = make(params, **given), torch.optim.SGD(params)
        handles = [
            register_optimizer_step_pre_hook(saying("all before")),
            register_optimizer_step_post_hook(saying("all after")),
            *(o.register_step_pre_hook(saying("before")) for o in (optimizer, other)),
            *(o.register_step_post_hook(saying("after")) for o in (optimizer, other)),
        ]
        once = ["all before", "before", "after", "all after"]
        try:
            for steps, o in enumerate((optimizer, other, optimizer), 1):
                o.step(closure)
                require(seen == once * steps, f"hooks ran in the order {seen}")
        finally:
            for handle in handles:
                handle.remove()
        optimizer.step(closure)
        require(seen == once * 3, "hooks ran that were removed")


def second_order_optims_return_consistent_types(make: Make, like: str) -> None:
    if not requires_closure(like):
        return
    params = [torch.randn(10, 5), torch.randn(10)]
    for given in options(make, like):
        one, other = (make(params, **{**given, "tolerance_grad": t}) for t in (math.inf, -math.inf))
        types = [type(optimizer.step(lambda: torch.tensor([10.0]))) for optimizer in (one, other)]
        require(types[0] is types[1], f"step() returns one of {types}")


#: All of them, the one first that compares numbers with those of torch.
TESTS: tuple[Callable[[Make, str], None], ...] = (
    foreach_matches_forloop,
    forloop_goes_right_direction,
    param_group_with_lrscheduler_goes_right_direction,
    param_groups_weight_decay,
    param_groups_lr,
    tensor_lr,
    rosenbrock_sparse,
    step_is_noop_when_params_have_no_grad,
    step_is_noop_for_zero_grads,
    optimizer_can_be_printed,
    state_dict_deterministic,
    can_load_from_to_named_state_dict,
    save_load_equality_with_weights_only,
    deepcopy_copies_all_public_attrs,
    state_dict_hooks,
    load_state_dict_hooks,
    step_hooks,
    second_order_optims_return_consistent_types,
)
