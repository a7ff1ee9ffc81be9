"""Dialects of a reference: how they are named, and the certificate of each."""

import numpy as np
import pytest

from stepcheck.harness.certificate.inputs import Effort
from stepcheck.harness.certificate.references import certify
from stepcheck.harness.play.references import spec_of
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import SPECS
from stepcheck.reference.dialect import with_options
from stepcheck.reference.dialects import _LIBRARIES, dialects, in_dialects, title

#: Those that compute something else; who counts the steps does not.
EACH = [(spec, d.name) for spec in SPECS.values() for d in dialects(spec) if not d.of_group]
EFFORT = Effort(elements=24, rounds=1, traces=0, candidates=0)


@pytest.mark.parametrize(("spec", "name"), EACH, ids=[f"{spec.name}-{name}" for spec, name in EACH])
def test_in_exact_arithmetic_a_dialect_lies_within_its_bounds(spec, name):
    compared = undetermined = 0
    for field in certify(in_dialects(spec, [name]), EFFORT):
        assert field.ratio <= 1, (field.field, field.ratio, field.witness)
        compared += field.compared
        undetermined += field.undetermined
    assert undetermined < 0.5 * compared


@pytest.mark.parametrize(("spec", "name"), EACH, ids=[f"{spec.name}-{name}" for spec, name in EACH])
def test_a_dialect_is_another_optimizer(spec, name):
    """Of one number, in eight steps with a schedule, with options that matter."""
    wanted = {"weight_decay": 0.1, "momentum": 0.9, "dampening": 0.5, "eps": 0.1, "amsgrad": True}
    options = {h.name: wanted[h.name] for h in spec.hyper if h.name in wanted and isinstance(h.default, float | bool)}

    def end(of):
        p, state = np.array([0.7]), of.initial_state(of.hyper_values(options))
        for n in range(8):
            p, state = of.update(p, np.array([0.3 - n / 9]), state, of.hyper_values(options, lr=0.1 / (n + 1)))
        return [float(np.squeeze(x)) for x in (p, *state.values())]

    assert end(in_dialects(spec, [name])) != end(spec)


def test_each_has_a_name_of_its_own():
    for spec in SPECS.values():
        names = [d.name for d in dialects(spec)]
        assert len(set(names)) == len(names)
        assert all(names)


def test_a_reference_says_in_which_dialects_it_is():
    spec = spec_of("Adam[eps-inside-root, decoupled-decay]")
    assert spec.name == "Adam"
    assert title(spec) == "Adam[eps-inside-root, decoupled-decay]"
    assert title(spec_of("Adam[ eps-inside-root,decoupled-decay ]")) == title(spec)
    assert {d.kind for d in dialects(spec)}.isdisjoint({"eps", "decay"})
    assert spec_of("Adam") is SPECS["Adam"]
    assert spec_of("Adam[]") is SPECS["Adam"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Adam[nothing]", "Adam has no dialect 'nothing'; there is eps-beside-uncorrected-root, eps-inside-root"),
        ("LBFGS[eps-inside-root]", "LBFGS has no dialect 'eps-inside-root'; there is none"),
        ("Adam[eps-inside-root, eps-inside-uncorrected-root]", "eps-inside-uncorrected-root and eps-inside-root are about one thing, eps: give one of them"),
        ("Adam[eps-inside-root", "no reference named 'Adam[eps-inside-root'; there is"),
        ("Nobody[eps-inside-root]", "no reference named 'Nobody'; there is"),
    ],
)  # fmt: skip
def test_what_there_is_not_is_told(text, told):
    with pytest.raises(UsageError) as raised:
        spec_of(text)
    assert str(raised.value).startswith(told)


def test_dialects_are_added_to_those_of_a_name():
    spoken = in_dialects(spec_of("Adam[eps-inside-root]"), ["decoupled-decay"])
    assert title(spoken) == "Adam[eps-inside-root, decoupled-decay]"


def test_in_which_order_they_are_said_does_not_matter():
    one, other = (in_dialects(SPECS["SGD"], names) for names in (["decoupled-decay", "lr-inside-momentum"],
                                                                ["lr-inside-momentum", "decoupled-decay"]))  # fmt: skip
    assert title(one) == title(other) == "SGD[lr-inside-momentum, decoupled-decay]"
    hyper = one.hyper_values(momentum=0.9, weight_decay=0.5, lr=0.1)
    p, state = one.update(np.array([1.0]), np.array([2.0]), {"momentum_buffer": np.array([0.0])}, hyper)
    assert (p.item(), state["momentum_buffer"].item()) == pytest.approx((1.0 - 0.05 - 0.2, 0.2))


def test_what_a_group_counts_is_stepped_alike():
    counting = [spec for spec in SPECS.values() if any(d.of_group for d in dialects(spec))]
    assert {"Adam", "AdamW", "Adamax", "NAdam", "RAdam"} <= {spec.name for spec in counting}
    for spec in counting:
        spoken = in_dialects(spec, ["step-by-group"])
        assert spoken.update is spec.update
        assert [b.name for b in spoken.buffers if b.of_group] == ["step"]


def test_a_library_s_name_stands_for_all_that_it_does_otherwise():
    assert title(spec_of("RMSprop[keras]")) == "RMSprop[eps-inside-root, lr-inside-momentum, decoupled-decay]"
    assert title(spec_of("RMSprop[optax]")) == "RMSprop[eps-inside-root, lr-inside-momentum]"
    assert title(spec_of("Adam[tensorflow]")) == "Adam[eps-beside-uncorrected-root]"
    assert title(spec_of("Adam[apex]")) == "Adam[decoupled-decay, step-by-group]"
    with pytest.raises(UsageError, match="RAdam has no dialect 'keras'; there is"):
        spec_of("RAdam[keras]")


def test_each_convention_of_a_library_is_one_of_that_optimizer():
    libraries = [(library, name) for library, of in _LIBRARIES.items() for name in of]
    assert len(libraries) > 8
    for library, name in libraries:
        assert title(spec_of(f"{name}[{library}]")) != name


def test_amsgrad_after_the_correction_by_hand():
    spec = spec_of("Adam[amsgrad-after-correction]")
    hyper = spec.hyper_values(amsgrad=True, betas=(0.5, 0.5), eps=0.0, lr=1.0)
    state = {"step": 0.0, "exp_avg": 0.0, "exp_avg_sq": 0.0, "max_exp_avg_sq": 0.0}
    p = 0.0
    for g in (2.0, 1.0):
        p, state = spec.update(p, g, state, hyper)
    # Corrected averages are 4 and (0.5 * 2 + 0.5 * 1) / 0.75 = 2: the largest stays 4.
    assert state["max_exp_avg_sq"] == pytest.approx(4.0)
    assert p == pytest.approx(-1.0 - (0.5 * 1.0 + 0.5 * 1.0) / 0.75 / 2.0)


def test_an_option_that_a_dialect_replaces_decides_which_buffers_there_are():
    given = SPECS["SGD"].hyper_values()
    assert SPECS["SGD"].initial_state(given) == {}
    assert "momentum_buffer" in with_options("names", "", momentum=0.9).applied(SPECS["SGD"]).initial_state(given)


def test_eps_inside_the_root_of_a_centered_average_by_hand():
    spec = spec_of("RMSprop[eps-inside-root]")
    hyper = spec.hyper_values(centered=True, alpha=0.75, eps=0.25, lr=1.0)
    p, state = spec.update(np.array([0.0]), np.array([2.0]), {"step": 0.0, "square_avg": 0.0, "grad_avg": 0.0}, hyper)
    # The averages are 1 and 0.5, the variance 0.75.
    assert (state["square_avg"].item(), state["grad_avg"].item(), p.item()) == pytest.approx((1.0, 0.5, -2.0))


def test_eps_inside_the_root_of_a_variance_that_rounding_leaves_below_zero():
    spec = spec_of("RMSprop[eps-inside-root]")
    hyper = spec.hyper_values(centered=True, alpha=0.75, eps=0.25, lr=1.0)
    below = {"step": 1.0, "square_avg": np.array([1.0 - 2e-16]), "grad_avg": np.array([1.0])}
    p, _ = spec.update(np.array([0.0]), np.array([1.0]), below, hyper)
    assert p.item() == pytest.approx(-2.0)


def test_a_mean_may_be_moved_from_the_one_before():
    """As optimi does: its share of the new value is rounded, which matters where beta is near 1."""
    spec = spec_of("Adam[debiased-averages]")
    hyper = spec.hyper_values(betas=(0.9, 0.9999), eps=1.0)
    state = {"step": 1.0, "exp_avg": np.array([1.0]), "exp_avg_sq": np.array([3.0])}
    _, after = spec.update(np.array([0.0]), np.array([2.0]), state, hyper)
    share = 1 - (0.9999**2 - 0.9999) / (0.9999**2 - 1)
    assert after["exp_avg_sq"].item() == pytest.approx(3.0 + (4.0 - 3.0) * share, rel=1e-11)


def test_an_eps_of_zero_stands_nowhere():
    spec = spec_of("RMSprop[eps-inside-root]")
    hyper = spec.hyper_values(alpha=1.0, eps=0.0, lr=1.0)
    with np.errstate(divide="ignore"):
        p, _ = spec.update(np.array([0.0]), np.array([2.0]), {"step": 0.0, "square_avg": np.array([0.0])}, hyper)
    assert p.item() == -np.inf


def test_eps_beside_the_norm_by_hand():
    spec = spec_of("Adamax[eps-beside-norm]")
    hyper = spec.hyper_values(betas=(0.5, 0.5), eps=0.5, lr=1.0)
    p, state = spec.update(0.0, 2.0, {"step": 0.0, "exp_avg": 0.0, "exp_inf": 0.0}, hyper)
    assert (state["exp_inf"], p) == pytest.approx((2.0, -2.0 / 2.5))


@pytest.mark.parametrize(("name", "momenta"), [("keras", (0.26, 0.2696)), ("optax", (0.5, 0.5))])
def test_nadam_s_momentum_by_hand(name, momenta):
    spec = spec_of(f"NAdam[{name}]")
    hyper = spec.hyper_values(betas=(0.5, 0.0), eps=0.0, lr=1.0)
    p, state = spec.update(0.0, 2.0, {"step": 0.0, "mu_product": 1.0, "exp_avg": 0.0, "exp_avg_sq": 0.0}, hyper)
    mu, following = momenta
    assert state["mu_product"] == pytest.approx(mu)
    assert p == pytest.approx(-((1 - mu) * 2.0 / (1 - mu) + following * 1.0 / (1 - mu * following)) / 2.0)
