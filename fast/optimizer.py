"""What all fast optimizers share: they are the classes of ``torch.optim`` with another step, or new ones beside them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar, Protocol

import torch
from torch._compile import _disable_dynamo
from torch.autograd import profiler
from torch.optim.optimizer import Optimizer, _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from stepcheck.fast import tensors
from stepcheck.fast.engine import (
    Group,
    HostPlan,
    Plan,
    Scaling,
    Served,
    State,
    StateOf,
    engine_of,
    overlaps,
    refusal,
    unscale,
)
from stepcheck.fast.kernels import kernels_of
from stepcheck.fast.limits import problem, problem_of_one
from stepcheck.fast.memory import CUT, STATE_ANEW, broken, is_cut, misnamed, unfit
from stepcheck.fast.native import Kernel
from stepcheck.fast.rules import NARROW, Rule, compensates
from stepcheck.fast.rules import always as always_present
from stepcheck.fast.shards import local
from stepcheck.fast.shards import refusal as shard_refusal
from stepcheck.fast.sparse import within_kernel

Closure = Callable[[], Any]
_UNSCALED = Scaling()
#: Engines that are none of this package.
_LEFT = ("torch", "none")


class Fast(Optimizer):
    """The part of a fast optimizer that is the same for all; it stands before the class of ``torch.optim``, or before ``Optimizer`` itself.

    Beyond speed it departs from ``torch.optim`` where that is wrong: options are validated in groups as they are in the constructor;
    gradients are looked at before anything is stepped, so that one that is refused leaves all as it was; what is loaded, and the
    dictionaries that describe groups, are copied; copies go on as the original does; hooks run once for each step, however many
    classes call ``super().step()``.
    """

    #: Keys of the state that hold numbers, which are loaded in the dtype that they have.
    _numbers: ClassVar[tuple[str, ...]] = ("step",)
    #: What a sparse gradient means to it; empty: it is refused.
    _sparse: ClassVar[str] = ""
    #: Of a DTensor, whether the step needs the whole of it, rather than what is on this rank.
    _whole: ClassVar[bool] = True
    #: On CPU tensors, the kernels for CUDA are run by Triton's interpreter: to check them where there is no GPU.
    _interpreted: ClassVar[bool] = False
    _stepping = False
    #: Whether the step can undo the scaling of a ``GradScaler``. It is left to do so where ``_step_supports_amp_scaling`` is set on the optimizer,
    #: which torch's constructors do for ``fused=True``: whoever clips gradients, or counts skipped steps, looks for it.
    _unscales = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls._replaces():
            cls.__init__ = _validated(cls.__init__, cls.named())  # type: ignore[method-assign]

    @classmethod
    def _torch(cls) -> type[Optimizer]:
        """The class of ``torch.optim`` that this one replaces; ``Optimizer`` itself where there is none."""
        return next(c for c in cls.__mro__ if c.__module__.startswith("torch.optim"))

    @classmethod
    def _replaces(cls) -> bool:
        """Whether it is this class that stands for one of ``torch.optim``, or for what it lacks, and not one that it is derived from."""
        return cls is not Fast and any(base.__module__.startswith("torch.optim") for base in cls.__bases__)

    @classmethod
    def named(cls) -> str:
        """The name of the optimizer that it is, under which its limits are known: that of ``torch.optim``, or its own where there is none."""
        theirs = cls._torch()
        if theirs is not Optimizer:
            return theirs.__name__
        return next((c.__name__ for c in cls.__mro__ if issubclass(c, Fast) and c._replaces()), "")  # noqa: SLF001 - a part of the class

    @classmethod
    def kernels(cls) -> Iterator[Kernel]:
        """All kernels that a step of this class on the CPU may need, compiled or loaded one by one.

        A step makes those that it needs by itself. To go through them ahead of time is worth it where no step may take long, or to
        fill the cache of an image.
        """
        return iter(())

    # Who does it

    @property
    def engine(self) -> tuple[Served, ...]:
        """Who steps each group, by its place in ``param_groups``, and why.

        ``llvm``: kernels of this package for the CPU; ``triton``: its kernels for CUDA; ``blas``: products and vector operations of
        torch, arranged by this package; ``torch``: the code of ``torch.optim``, with the reason; ``none``: what ``torch.optim`` lacks, nobody
        steps where kernels do not. Of DTensors, each rank steps what it has, unless the reason says that the whole is gathered.
        """
        return tuple(self._served(group) for group in self.param_groups)

    def _served(self, group: Group) -> Served:
        raise NotImplementedError

    # Groups

    def add_param_group(self, param_group: Group) -> None:
        """As ``torch.optim``, with a copy of the dictionary, and its options validated.

        Raises:
            ValueError: an option is not one that the constructor would take.
        """
        group = dict(param_group)
        given = {k: v for k, v in group.items() if k != "params"}
        wrong = problem(self.named(), {**self.defaults, **given})
        if wrong:
            raise ValueError(wrong)
        super().add_param_group(group)
        # One tensor for several groups would make a schedule of the one a schedule of all.
        added, others = self.param_groups[-1], self.param_groups[:-1]
        for key, value in added.items():
            if isinstance(value, torch.Tensor) and any(value is other.get(key) for other in others):
                added[key] = value.clone()

    # State

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As ``torch.optim``, with memory of its own, and numbers kept for a parameter in the dtype that they have."""
        handle = self.register_load_state_dict_pre_hook(_shielded)  # runs after the caller's
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()

    def __setstate__(self, state: dict[str, Any]) -> None:
        for of_parameter in state.get("state", {}).values():
            for key, value in of_parameter.items() if isinstance(of_parameter, dict) else ():
                if isinstance(value, _Shield):
                    of_parameter[key] = value.tensor
        super().__setstate__(state)

    # The step

    def step(self, closure: Closure | None = None) -> Any:
        """One step of all parameters that have gradients.

        Args:
            closure: evaluated first, with gradients enabled; it returns the loss.

        Returns:
            What the closure returned, or ``None``.

        Raises:
            RuntimeError: a gradient is sparse where none is taken, dense where only sparse ones are, or not of its parameter's
                shape and dtype; its storage, the parameter's or that of a tensor in the state was freed or is too small; what the
                state has is incomplete, or not the numbers and tensors that it should be; or of gradient, parameter and state some
                are DTensors and some are not, a gradient is on another mesh than its
                parameter, or a parameter is a sum yet to be taken. Nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        own = self.__dict__
        scaled = "grad_scale" in own or "found_inf" in own
        scaling = Scaling(own.get("grad_scale"), own.get("found_inf")) if scaled else _UNSCALED
        # Where to ask whether gradients are infinite means to wait for a device, the kernels ask.
        if (
            self._interpreted
            or scaling.found_inf is None
            or scaling.found_inf.device.type != "cpu"
            or not scaling.skips
        ):
            if torch.compiler.is_compiling():
                _uncompiled(self, scaling)
            else:
                self._update(scaling)
        return loss

    def _update(self, scaling: Scaling) -> None:
        """Step all groups, unless ``scaling`` skips them."""
        raise NotImplementedError

    def _check_gradients(self, scaling: Scaling) -> None:
        """Refuse what cannot be taken before anything is stepped."""
        name = self.named()
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            wrong = shard_refusal(p, self.state.get(p, {}), self._numbers, whole=self._whole)
            if wrong:
                raise RuntimeError(f"{name}: {wrong}")
            assert p.grad is not None
            g = local(p.grad)
            if scaling.grad_scale is not None and g.layout is torch.strided and overlaps(g):
                raise RuntimeError(
                    f"{name}: a gradient whose elements share memory cannot be unscaled in place; clone it"
                )
            if g.is_sparse and not self._sparse:
                raise RuntimeError(f"{name} does not support sparse gradients")
            if not g.is_sparse and self._sparse == "only":
                raise RuntimeError(f"{name} does not support dense gradients, please consider Adam instead")
            wrong = unfit(p, p.grad) or (misnamed(g) if g.is_sparse else "")
            if wrong:
                raise RuntimeError(f"{name}: {wrong}")
            wrong = self._broken(p, self.state.get(p, {}))
            if wrong:
                raise RuntimeError(f"{name}: {wrong}; {STATE_ANEW}")

    def _broken(self, p: torch.Tensor, state: State) -> str:
        """Why this parameter cannot be stepped with this state, or nothing."""
        raise NotImplementedError

    def _step_by_torch(self, groups: list[Group], scaling: Scaling) -> None:
        """Step these groups by torch's own code, which finds the gradients unscaled."""
        if scaling.skips or self._torch() is Optimizer:  # of which gradients were refused
            return
        if scaling.grad_scale is not None:
            for p in (p for group in groups for p in group["params"] if p.grad is not None):
                unscale(p, scaling.factor)
        step: Any = self._torch().step
        step = step.__wrapped__ if getattr(step, "hooked", False) else step
        whole, self.param_groups = self.param_groups, groups
        # Of scaled gradients, torch's plain code takes no note but to refuse them.
        hidden: dict[str, Any] = {
            name: self.__dict__.pop(name) for name in ("grad_scale", "found_inf") if name in self.__dict__
        }
        try:
            step(self)
        finally:
            self.param_groups = whole
            self.__dict__.update(hidden)

    def _patch_step_function(self) -> None:
        # torch's own looks for a profiler at the cost of a hundred small parameters, and wraps each class of a family anew.
        self._zero_grad_profile_name = f"Optimizer.zero_grad#{type(self).__name__}.zero_grad"
        cls = type(self)
        if not getattr(cls.step, "hooked", False):
            cls.step = _hooked(cls.step)  # type: ignore[method-assign]


def _validated(init: Callable[..., None], name: str) -> Callable[..., None]:
    """A constructor that looks at its options before torch's own does, which cuts a tuple to the length that it expects.

    What torch says of an option, where it says something, comes first: programs look for it.
    """
    signature = inspect.signature(init)

    @functools.wraps(init)
    def construct(self: Fast, *args: Any, **options: Any) -> None:
        wrong = problem_of_one(name, signature.bind(self, *args, **options).arguments)
        said = ""
        try:
            init(self, *args, **options)
        except Exception as error:
            if not wrong:
                raise
            said = str(error) if isinstance(error, ValueError) and wrong not in str(error) else ""
        if wrong:
            raise ValueError(f"{said}; {wrong}" if said else wrong)

    return construct


def _compensating(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor with the further keyword ``compensated``."""
    theirs = inspect.signature(init)
    own = inspect.Parameter("compensated", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)

    @functools.wraps(init)
    def construct(self: ByRule, *args: Any, compensated: bool = False, **options: Any) -> None:
        init(self, *args, **options)
        if compensated:
            self.defaults["compensated"] = True
            for group in self.param_groups:
                group.setdefault("compensated", True)

    vars(construct)["__signature__"] = theirs.replace(parameters=[*theirs.parameters.values(), own])
    return construct


@_disable_dynamo  # that of torch.compiler imports the compiler here and now
def _uncompiled(optimizer: Fast, scaling: Scaling) -> None:
    """In a step that is given to ``torch.compile``: there is nothing in it to compile."""
    optimizer._update(scaling)  # noqa: SLF001 - a part of the class


def _hooked(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` with the hooks before and after it, once for each step."""

    @functools.wraps(step)
    def wrapper(self: Fast, *args: Any, **kwargs: Any) -> Any:
        if self._stepping:
            return step(self, *args, **kwargs)
        self._stepping = True
        try:
            if profiler._is_profiler_enabled:  # noqa: SLF001 - to ask costs nothing, to record ten microseconds
                with profiler.record_function(f"Optimizer.step#{type(self).__name__}.step"):
                    return _with_hooks(step, self, args, kwargs)
            return _with_hooks(step, self, args, kwargs)
        finally:
            self._stepping = False

    vars(wrapper)["hooked"] = True  # where torch looks for it
    return wrapper


def _with_hooks(step: Callable[..., Any], self: Fast, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = (self, *args)
    # Usually there are none, and to find that out by a loop takes as long as to step a parameter.
    before, after = self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks
    if before or _global_optimizer_pre_hooks:
        for hook in chain(_global_optimizer_pre_hooks.values(), before.values()):
            result = hook(self, given, kwargs)
            if result is None:
                continue
            if not (isinstance(result, tuple) and len(result) == 2):
                raise RuntimeError(f"a hook before step() must return None or (args, kwargs), got {result!r}")
            given, kwargs = result
    out = step(*given, **kwargs)
    self._optimizer_step_code()
    if after or _global_optimizer_post_hooks:
        for hook in chain(after.values(), _global_optimizer_post_hooks.values()):
            hook(self, given, kwargs)
    return out


class _Shield:
    """A tensor that ``torch.optim`` does not see when it casts what it loads."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def _shielded(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """A dictionary to load, with tensors of its own, those of them that are numbers out of sight."""
    assert isinstance(optimizer, Fast)
    numbers = type(optimizer)._numbers  # noqa: SLF001 - a part of the class

    def own(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if is_cut(local(value)):
                raise RuntimeError(CUT.format("a tensor to be loaded"))
            return value.clone()
        return type(value)(map(own, value)) if isinstance(value, list | tuple) else value

    def of_parameter(state: Any) -> Any:
        if not isinstance(state, dict):
            return own(state)
        clones = {key: own(value) for key, value in state.items()}
        return {k: _Shield(v) if k in numbers and isinstance(v, torch.Tensor) else v for k, v in clones.items()}

    return {**state_dict, "state": {i: of_parameter(state) for i, state in state_dict["state"].items()}}


class Steps(Protocol):
    """What a step of some groups consists of on one device, as long as parameters, gradients and state stay what and where they are."""

    #: Whether a CUDA graph has recorded a step, and reads the tables whenever it is replayed.
    captured: bool

    def suits(self, scaling: Scaling) -> bool:
        """Whether it is made for gradients that are scaled, or not, as these."""

    def holds(self, groups: list[Group], state: StateOf) -> bool:
        """Whether all that the tables depend on is as it was. Takes note of options and gradients on the way."""

    def step(self, scaling: Scaling) -> None:
        """Step all parameters that had gradients when last looked."""


class Planned(Fast):
    """A fast optimizer that looks at everything once, and goes by what it found until something changes."""

    #: One for each device.
    _plans: Sequence[Steps] | None = None
    #: Those that CUDA graphs have recorded: whoever has such a graph may replay it for as long as there is the optimizer.
    _recorded: tuple[Steps, ...] = ()

    @classmethod
    def kernels(cls) -> Iterator[Kernel]:
        return tensors.kernels()

    def _update(self, scaling: Scaling) -> None:
        plans = self._plans
        if not plans:
            self._step_anew(scaling)
            return
        groups, state = self.param_groups, self.state
        for plan in plans:
            if not (plan.suits(scaling) and plan.holds(groups, state)):
                self._step_anew(scaling)
                return
        for plan in plans:
            plan.step(scaling)

    @torch.no_grad()
    def _step_anew(self, scaling: Scaling) -> None:
        """A step that looks at everything first, and remembers what it found if kernels serve all of it."""
        self._check_gradients(scaling)
        served = [(group, self._served(group).engine) for group in self.param_groups]
        own = [group for group, engine in served if engine not in _LEFT]
        left = [group for group, engine in served if engine in _LEFT]
        former, self._plans = self._plans or (), None
        self._recorded += tuple(plan for plan in former if plan.captured)
        plans = [self._plan(own, device, scaling, former) for device in _devices(own)]
        for plan in plans:
            plan.step(scaling)
        if left:
            self._step_by_torch(left, scaling)
        else:
            self._plans = plans

    def _plan(self, groups: list[Group], device: torch.device, scaling: Scaling, former: Sequence[Steps]) -> Steps:
        """What a step of the parameters of these groups on one device consists of; it makes what state they lack.

        Args:
            former: the plans of the step before.
        """
        raise NotImplementedError


class ByRule(Planned):
    """A fast optimizer whose step is a rule.

    Its constructor has a keyword that ``torch.optim`` lacks, which may stand in a group as well: ``compensated=True`` carries what rounding
    to float16 and bfloat16 loses, from step to step, in buffers of the parameter's dtype: ``compensation`` for the parameter, whose value
    is the sum of both, and ``NAME_compensation`` for averages that change slowly. Parameters of other dtypes are stepped as ever.
    """

    rule: ClassVar[Rule]
    #: Buffers that a parameter has whatever the options are, and those that it has with some.
    _always: ClassVar[list[str]]
    _at_times: ClassVar[list[str]]
    _whole = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "rule" in cls.__dict__:
            cls._numbers, cls._sparse = tuple(cls.rule.counters), cls.rule.sparse
            cls._always = [name for name, buffer in cls.rule.buffers.items() if buffer.present is always_present]
            cls._at_times = [name for name in (*cls.rule.buffers, *cls.rule.carried) if name not in cls._always]
        if cls._replaces():
            cls.__init__ = _compensating(cls.__init__)  # type: ignore[method-assign]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if compensates(self.defaults):
            # A checkpoint without it is continued with it.
            for group in self.param_groups:
                group.setdefault("compensated", True)

    @classmethod
    def kernels(cls) -> Iterator[Kernel]:
        yield from super().kernels()
        yield from kernels_of(cls.rule)
        if cls.rule.sparse:
            yield within_kernel()

    def _served(self, group: Group) -> Served:
        reason = refusal(self.rule, group, self.state, interpreted=self._interpreted)
        devices = {p.device for p in group["params"]}
        left = "none" if self._torch() is Optimizer else "torch"
        return Served(left, reason) if reason else Served(engine_of(devices, interpreted=self._interpreted), "")

    def _broken(self, p: torch.Tensor, state: State) -> str:  # noqa: ARG002 - whatever the parameter is
        return broken(state, self._numbers, self._always, self._at_times)

    def _check_gradients(self, scaling: Scaling) -> None:
        super()._check_gradients(scaling)
        for group in self.param_groups:
            engine, why = self._served(group) if self._torch() is Optimizer else ("", "")
            if engine == "none" and any(p.grad is not None for p in group["params"]):
                raise RuntimeError(
                    f"{self.named()}: torch.optim has none, and the kernels do not take this group: {why}; change that"
                )
            reason = self.rule.dense_alone(group) if self.rule.sparse else ""
            if reason and any(p.grad is not None and p.grad.is_sparse for p in group["params"]):
                raise RuntimeError(f"{self.named()} takes no sparse gradients with these options: {reason}")
            if compensates(group) and any(str(p.dtype).removeprefix("torch.") in NARROW for p in group["params"]):
                reason = self._served(group).reason
                if reason:
                    raise RuntimeError(
                        f"{self.named()}: torch does not do compensated=True, and the kernels do not take this group: {reason}; change that, or set compensated=False for it"
                    )

    def _plan(self, groups: list[Group], device: torch.device, scaling: Scaling, former: Sequence[Steps]) -> Plan:
        make: type[Plan] = HostPlan
        if self._interpreted or device.type != "cpu":
            from stepcheck.fast.cuda.engine import DevicePlan  # where nothing is on a GPU, nobody needs it

            make = DevicePlan
        last = next((plan for plan in former if isinstance(plan, HostPlan) and make is HostPlan), None)
        return make(self.rule, groups, self.state, device, unscale=scaling.grad_scale is not None, former=last)


def _devices(groups: list[Group]) -> list[torch.device]:
    """The devices of the parameters, in the order in which they appear."""
    return list(dict.fromkeys(p.device for group in groups for p in group["params"]))
