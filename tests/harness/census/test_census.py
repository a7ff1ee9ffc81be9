"""The census reads what compiled kernels do, holds it to their models, and says where they leave them."""

import dataclasses

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from stepcheck.fast import RULES
from stepcheck.fast.cuda import adafactor, kernels, lbfgs, muon, runtime
from stepcheck.fast.kernels import Layout
from stepcheck.harness.census import compile as compiling
from stepcheck.harness.census import facts, flow, launches, model, ptx, sass, tables
from stepcheck.harness.census.compile import Job, count, count_all
from stepcheck.harness.census.kernels import DENSE, SCATTERED, kernels_of
from stepcheck.harness.census.occupancy import occupancy, resident_warps
from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.comparison import ratios
from stepcheck.harness.numbers.formats import BINARY32, COUNTERS64, Arithmetic
from stepcheck.harness.play import profiles, subjects
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings

PTX = """
.version 8.0
.target sm_90a
.visible .entry kernel(
	.param .u64 .ptr .global .align 1 kernel_param_0
)
.reqntid 128
{
	.reg .pred 	%p<3>;
	.loc	1 8 0                           // <kernel>:8:0
	ld.param.b64 	%rd1, [kernel_param_0];
	// begin inline asm
	mov.u64 %rd2, 0x0;
	ld.global.b64 { %rd2 }, [ %rd1 + 0 ];
	// end inline asm
	setp.gt.s64 	%p1, %rd2, 511;
	@%p1 bra 	$L__BB0_2;
	mov.u32 	%r1, %tid.x;
	mad.wide.u32 	%rd3, %r1, 16, %rd1;
	ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd3 + 0 ];
	div.rn.f32 	%r6, %r2, %r3;
	fma.rn.f32 	%r7, %r6, %r4, %r5;
	mul.ftz.f32 	%r8, %r7, %r7;
	st.global.v4.b32 [ %rd3 + 0 ], { %r6, %r7, %r8, %r8 };
	bra.uni 	$L__BB0_3;
$L__BB0_2:
	mov.u32 	%r1, %tid.x;
	mad.wide.u32 	%rd3, %r1, 4, %rd1;
	@%p2 ld.global.b32 { %r2 }, [ %rd3 + 0 ];
	@%p2 st.global.b32 [ %rd3 + 0 ], { %r2 };
	setp.lt.s64 	%p2, %rd2, 0;
	@%p2 bra 	$L__BB0_2;
$L__BB0_3:
	ret;
}
	.section	.debug_abbrev
	{
.b8 1                                   // Abbreviation Code
	}
"""
SASS = """
	.headerflags	@"EF_CUDA_64BIT_ADDRESS EF_CUDA_SM90"
        /*0000*/                   LDC.64 R2, c[0x0][0x210] ;
        /*0010*/                   LDG.E.64 R6, desc[UR4][R2.64] ;
        /*0020*/               @P0 BRA 0xe0 ;
        /*0030*/                   S2R R5, SR_TID.X ;
        /*0040*/                   IMAD.WIDE.U32 R4, R5, 0x10, R2 ;
        /*0050*/                   STL.64 [R1+0x8], R4 ;
        /*0060*/                   LDG.E.128 R8, desc[UR4][R4.64] ;
        /*0070*/                   BSSY B0, 0xb0 ;
        /*0080*/              @!P1 BRA 0xa0 ;
        /*0090*/                   CALL.REL.NOINC 0x110 ;
        /*00a0*/                   BSYNC B0 ;
        /*00b0*/                   LDL.LU.64 R16, [R1+0x8] ;
        /*00b8*/                   F2F.F32.F64 R15, R8 ;
        /*00c0*/                   STG.E.128 desc[UR4][R16.64], R8 ;
        /*00d0*/                   EXIT ;
        /*00e0*/              @!P2 STG.E desc[UR4][R4.64], R8 ;
        /*00f0*/               @P3 BRA 0xe0 ;
        /*0100*/                   EXIT ;
        /*0110*/                   DADD R8, R8, R10 ;
        /*0120*/                   RET.REL.NODEC R20 0x0 ;
"""


def _layout(name, dtype, *buffers, **more):
    return Layout(RULES[name], dtype, buffers, **more)


def _departures(source, of_layout, capability=90, scattered=False):
    expected = model.of_layout(of_layout, scattered=scattered)
    counts = count(Job(source, capability, expected.way))
    return model.departures(expected, counts, capability, source.warps)


def _changed(source, old, new):
    assert old in source.text
    return dataclasses.replace(source, text=source.text.replace(old, new))


def test_ptx_is_read():
    listing = ptx.parse(PTX)
    path = flow.main_path(listing, "whole")
    assert (path.loaded, path.stored, path.sizes, path.masked, path.table) == (16, 16, {16: 2}, 0, 8)
    assert path.operations["div.rn.f32"] == 1
    operations = flow.totals(listing.instructions)
    assert ptx.divisions(operations) == {"div.rn.f32": 1}
    assert ptx.flushed(operations) == 1
    assert ptx.contracted(operations) == 2, "an fma, and a product that does not say how it rounds"
    assert [i.guard for i in listing.instructions if i.size == 4] == ["%p2", "%p2"]


def test_sass_is_read():
    listing = sass.parse(SASS)
    path = flow.main_path(listing, "whole")
    assert (path.loaded, path.stored, path.sizes, path.masked, path.table) == (16, 16, {16: 2}, 0, 8)
    operations = flow.totals(listing.instructions)
    assert sass.spills(operations) == 2
    assert sum(n for op, n in operations.items() if sass.is_float64(op)) == 2


def test_what_is_converted_from_float64_to_float32_fills_one_register():
    written = {i.opcode: i.writes for i in sass.parse(SASS).instructions}
    assert written["F2F.F32.F64"] == ("R15",)
    assert written["DADD"] == ("R8", "R9")


def test_kernels_that_are_disassembled_together_are_told_apart():
    sources = [k.source for k in kernels_of("Muon") if k.dtype == "float32" and not k.variant]
    jobs = [Job(source, 90, "") for source in sources]
    assert count_all(jobs) == [count(job) for job in jobs]


def test_a_way_that_cannot_be_told_is_an_error():
    everywhere = PTX.replace("setp.lt.s64 	%p2, %rd2, 0;\n	@%p2 bra 	$L__BB0_2;", "")
    with pytest.raises(flow.Unidentified, match="more than one way"):
        flow.main_path(ptx.parse(everywhere), "whole")
    nowhere = PTX.replace("st.global.v4.b32 [ %rd3 + 0 ], { %r6, %r7, %r8, %r8 };", "")
    with pytest.raises(flow.Unidentified, match="nothing is stored"):
        flow.main_path(ptx.parse(nowhere), "whole")


def test_an_access_in_a_block_that_is_not_always_executed_counts_as_masked():
    sometimes = PTX.replace("ld.global.v4.b32 { %r2", "@%p2 bra $L__BB0_9;\n	ld.global.v4.b32 { %r2")
    sometimes = sometimes.replace("	div.rn.f32", "$L__BB0_9:\n	div.rn.f32")
    assert flow.main_path(ptx.parse(sometimes), "whole").masked == 1


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "resident"),
    [(32, 0, 4, 64), (64, 0, 4, 32), (65, 0, 4, 28), (255, 0, 4, 8), (16, 0, 1, 32), (32, 100 * 1024, 4, 8)],
)
def test_the_least_of_the_limits_says_how_many_warps_are_resident(registers, shared, warps, resident):
    assert resident_warps(90, registers, shared, warps) == resident
    assert occupancy(90, registers, shared, warps) == resident / 64


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["Adam", "SGD"])  # all of them are slow
def test_kernels_count_what_their_models_say(name):
    some = [k for k in kernels_of(name) if k.dtype in ("float32", "bfloat16", "any") and k.role != SCATTERED]
    taken = {k.name: count(Job(k.source, 90, k.model.way)) for k in some}
    assert {k.name: model.departures(k.model, taken[k.name], 90, k.source.warps) for k in some} == {
        k.name: [] for k in some
    }
    whole = [k for k in some if k.role == DENSE]
    assert whole
    assert all(taken[k.name].sass.sizes.keys() == {16} for k in whole)


LOOPS = """
.visible .entry kernel()
{
	mov.u32 	%r1, %tid.x;
	mad.wide.u32 	%rd3, %r1, 16, %rd1;
	@%p1 bra 	$L__BB0_2;
	ld.global.b32 { %r9 }, [ %rd3 + 64 ];
$L__BB0_1:
	ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd3 + 0 ];
	@%p3 st.global.b32 [ %rd3 + 32 ], { %r2 };
	setp.lt.s64 	%p2, %rd2, 0;
	@%p2 bra 	$L__BB0_1;
	st.global.v4.b32 [ %rd3 + 0 ], { %r6, %r7, %r8, %r8 };
	bra.uni 	$L__BB0_3;
$L__BB0_2:
	@%p2 ld.global.b32 { %r2 }, [ %rd3 + 0 ];
	setp.lt.s64 	%p2, %rd2, 0;
	@%p2 bra 	$L__BB0_2;
$L__BB0_3:
	ret;
}
"""


def test_the_loop_over_whole_blocks_is_told_from_others():
    one_pass, all_of_it = (flow.main_path(ptx.parse(LOOPS), way) for way in ("loop", "around"))
    assert (one_pass.loaded, one_pass.stored, one_pass.sizes, one_pass.masked) == (16, 4, {16: 1, 4: 1}, 1)
    assert (all_of_it.loaded, all_of_it.stored, all_of_it.sizes) == (20, 20, {16: 2, 4: 2})


@pytest.mark.parametrize(
    ("old", "new"), [("	ld.global.v4", "	@%p3 ld.global.v4"), ("@%p2 ld.global", "ld.global")]
)
def test_a_loop_that_cannot_be_told_is_an_error(old, new):
    with pytest.raises(flow.Unidentified, match="loops load elements without conditions"):
        flow.main_path(ptx.parse(LOOPS.replace(old, new)), "loop")


def test_what_a_pass_of_a_loop_may_skip_is_masked():
    skipped = LOOPS.replace("	@%p3 st.global", "	@%p3 bra $L__BB0_9;\n	st.global").replace(
        "	setp", "$L__BB0_9:\n	setp", 1
    )
    assert flow.main_path(ptx.parse(skipped), "loop").masked == 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "dtype"), [("Adafactor", "bfloat16"), ("Muon", "float32"), ("LBFGS", "float32")])
def test_kernels_of_families_count_what_their_models_say(name, dtype):
    some = [k for k in kernels_of(name) if k.dtype in (dtype, "any")]
    counts = dict(compiling.run({k.source: Job(k.source, 90, k.model.way) for k in some}))
    assert {k.name: model.departures(k.model, counts[k.source], 90, k.source.warps) for k in some} == {
        k.name: [] for k in some
    }
    assert any(k.model.elements for k in some if k.streams)


@pytest.mark.parametrize(("name", "module"), [("Adafactor", adafactor), ("Muon", muon), ("LBFGS", lbfgs)])
def test_all_kernels_of_families_are_counted(name, module):
    assert {k.source for k in kernels_of(name)} == {source for _, source in module.sources()}


def _role(name, role, dtype="float32", variant=""):
    found = [k for k in kernels_of(name) if (k.role, k.dtype, k.variant) == (role, dtype, variant)]
    assert len(found) == 1
    return found[0]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("kernel", "old", "new", "told"),
    [
        (("Adafactor", "tile_squares"), "x = load(elements(g, i, j, inside), inside)", "x = load(elements(g, i, j, inside), inside) + load(elements(g, i, j, inside) + 1, inside)", "loads 8 bytes per element, not 4"),
        (("Adafactor", "tile_move"), "store(at_p, decay", "store(elements(g, i, j, inside), y, inside); store(at_p, decay", "stores 8 bytes per element, not 4"),
        (("Adafactor", "tile_move"), "tl.multiple_of(lines + j[None, :], (1, 16))", "lines + j[None, :]", "of 32 bits (PTX)"),
        (("Adafactor", "tile_sums"), "tl.store(row_sums + i,", "tl.store(row_sums + i + 1024, i.to(tl.float32)); tl.store(row_sums + i,", "of 32 bits (PTX)"),
        (("Adafactor", "vector_squares"), "quotient(x, at_least(root(v), eps1))", "x / at_least(root(v), eps1)", "not correctly rounded"),
        (("Adafactor", "factors"), "rest * y", "tl.fma(rest, y, y)", "3 products and sums are or may be contracted, not 2"),
        (("Adafactor", "averages"), "new = keep * load(at, inside)", "new = (keep.to(tl.float64) * load(at, inside) + 0.1).to(tl.float32)", "float64 instructions (PTX)"),
        (("Adafactor", "tile_move", "bfloat16"), "decay * y - rate * u", "widened(narrowed(decay * y)) - rate * u", "conversions to bfloat16 per element: 2"),
        (("Muon", "average"), "tl.store(at_x, cast)", "tl.store(at_x, cast, mask=i < n)", "accesses on the main path are masked"),
        (("Muon", "normalize"), "tl.div_rn(x * scale, norm)", "x * scale * tl.div_rn(1.0, norm)", "0.125 div per element, not 1"),
        (("LBFGS", "products with two vectors"), "w_0 = tl.load(tl.multiple_of(row_0, 16) + i)", "w_0 = tl.load(row_0 + i)", "of 32 bits (PTX)"),
        (("LBFGS", "rounded sum"), "tl.store(tl.multiple_of(out, 16) + i, value)", "tl.store(tl.multiple_of(out, 16) + i, value, mask=i < n)", "masked"),
    ],
)  # fmt: skip
def test_a_wrong_kernel_of_a_family_leaves_its_model(kernel, old, new, told):
    right = _role(*kernel)
    source = _changed(right.source, old, new)
    found = model.departures(right.model, count(Job(source, 90, right.model.way)), 90, source.warps)
    assert any(told in line for line in found), found


@pytest.mark.parametrize(("name", "launched"), [("Adafactor", [1, 11]), ("Muon", [1, 4]), ("LBFGS", [0, 4])])
def test_a_step_of_a_family_launches_as_often_for_many_tensors_as_for_one(name, launched):
    measured = launches.measured(name, "float32")
    assert launches.departures(name, "float32", measured) == []
    for by_role in measured.values():
        prepared = by_role.get("prepare", 0)
        assert [prepared, sum(by_role.values()) - prepared] == launched
    assert launches.departures(name, "float32", {10: {**measured[10], next(iter(measured[10])): 10}})


@pytest.mark.slow
def test_all_kernels_count_what_their_models_say():
    census = tables.take(tables.known())
    assert census.failures == []
    assert census.unknown == []


def test_what_does_not_compile_is_unknown():
    taken = tables.Counted(next(kernels_of("SGD")), 90, "CompilationError: no")
    census = tables.Census((90,), [taken], {}, [], {"triton": "3"})
    assert census.unknown == [taken]
    assert "unknown: CompilationError" in tables.lines(census)[0]


# --- Wrong kernels leave their models.

SGD = _layout("SGD", "float32")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("all_g = tl.load(at_g)", "all_g = tl.load(at_g) + tl.load(at_p + 1)", "loads 12 bytes per element, not 8"),
        ("new_p = p - ", "new_p = p - 0.1 / g * ", "not correctly rounded: 5 div.full.f32"),
        ("new_p = p - ", "new_p = p - (g.to(tl.float64) * g + 0.1).to(tl.float32) * ", "float64 instructions (PTX)"),
        ("all_g = tl.load(at_g)", "all_g = tl.load(at_g, mask=i < n)", "accesses on the main path are masked (PTX)"),
        ("tl.multiple_of(tl.load(row + 3).to(tl.pointer_type(tl.float32)), 16)", "tl.load(row + 3).to(tl.pointer_type(tl.float32))", "of 32 bits (PTX)"),
        ("new_p = p - ", "new_p = p - tl.fma(g, g, g) * ", "may be contracted"),
    ],
    ids=["an extra load", "an approximate division", "float64", "a masked load", "narrow accesses", "contraction"],
)  # fmt: skip
def test_a_wrong_kernel_leaves_its_model(old, new, told):
    source = kernels.dense_source(SGD)
    assert _departures(source, SGD) == []
    found = _departures(_changed(source, old, new), SGD)
    assert any(told in line for line in found), found


def test_registers_that_spill_are_told():
    layout = _layout("Adam", "bfloat16", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    source = dataclasses.replace(kernels.dense_source(layout), registers=32)
    assert any("spilled registers" in line for line in _departures(source, layout))


def test_a_step_launches_as_often_for_many_tensors_as_for_one():
    measured = launches.measured("Adam", "float32")
    assert measured == {tensors: {"prepare": 1, "dense": 1} for tensors in launches.TENSORS}
    assert launches.departures("Adam", "float32", measured) == []
    assert launches.departures("Adam", "float32", {10: {"prepare": 1, "dense": 10}})


# --- What budgets take from it.


def test_the_facts_of_shipped_kernels_are_those_of_exact_arithmetic_but_for_powers():
    slow = 2.0 * runtime.POWER_ULPS
    for name, power in (("SGD", 2.0), ("Adamax", slow), ("Adafactor", slow), ("Muon", 2.0), ("LBFGS", 2.0)):
        counted, plain = facts.cuda_profile(name, 90), profiles.fast_profile(name, "cuda")
        assert dataclasses.replace(counted, reason=plain.reason) == dataclasses.replace(plain, power=power)
        assert "sm_90" in counted.reason


def test_facts_follow_from_instructions():
    exact = profiles.fast_profile("SGD")
    made = facts.profile_of(exact, {"div.full.ftz.f32": 3, "sqrt.approx.f32": 1}, "sm_90", powers=True)
    assert (made.division, made.square_root, made.power, made.flush_to_zero) == (4.0, 2.0, 4.0, True)
    with pytest.raises(ValueError, match="how accurate rsqrt"):
        facts.profile_of(exact, {"rsqrt.approx.f32": 1}, "sm_90", powers=False)


def test_a_power_that_is_two_ulps_off_is_within_the_budget_that_says_so():
    loose = dataclasses.replace(profiles.fast_profile("Adam"), power=4.0).kept("float64")
    five = 5 * np.spacing(0.999**7.0)
    for arithmetic, accepted in ((loose, True), (COUNTERS64, False)):
        bound = Bounded(np.float64(0.999), 0.0, arithmetic) ** Bounded(np.float64(7.0), 0.0, arithmetic)
        # Just below 1 an ulp is half of what two roundings may cost, and the reference's own pow takes two of them.
        assert (five <= bound.error) == accepted
    assert profiles.fast_profile("Adam").kept("float64") is COUNTERS64


FLUSHING = Arithmetic(BINARY32, flushes=True)


def _flush(x):
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


@pytest.mark.parametrize("operation", [np.add, np.subtract, np.multiply, np.divide, np.maximum, np.sqrt])
def test_the_budget_of_arithmetic_that_flushes_covers_it(operation):
    rng = np.random.default_rng(0)
    tiny = np.finfo(np.float32).tiny
    a, b = (
        (tiny * rng.choice([-1.0, 1.0], 4000) * 2.0 ** rng.uniform(-8, 4, 4000)).astype(np.float32) for _ in range(2)
    )
    # A product of two such numbers is zero in any arithmetic.
    operands = (np.abs(a),) if operation is np.sqrt else (a, b / tiny if operation is np.multiply else b)
    with np.errstate(all="ignore"):
        found = _flush(operation(*map(_flush, operands)))
        for arithmetic, accepted in ((FLUSHING, True), (Arithmetic(BINARY32), False)):
            exact = [Bounded(x.astype(np.float64), 0.0, arithmetic) for x in operands]
            assert bool((ratios(found.astype(np.float64), operation(*exact)) <= 1).all()) == accepted


def test_the_budget_of_arithmetic_that_flushes_is_no_larger_among_normal_numbers():
    a, b = (np.random.default_rng(n).uniform(1, 2, 100) for n in (0, 1))
    for operation in (np.add, np.multiply, np.divide):
        errors = [
            operation(Bounded(a, 0.0, arithmetic), Bounded(b, 0.0, arithmetic)).error
            for arithmetic in (FLUSHING, Arithmetic(BINARY32))
        ]
        assert (errors[0] <= errors[1]).all()


class FlushingSGD(torch.optim.SGD):
    """Takes subnormal numbers for zero, and makes zero of subnormal results, as operations in a mode that flushes do."""

    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                sign = -1.0 if group["maximize"] else 1.0
                move = _flushed(group["lr"] * _flushed(sign * _flushed(p.grad)))
                p.data.copy_(_flushed(_flushed(p.detach()) - move))
        return loss


def _flushed(x):
    return torch.where(x.abs() < torch.finfo(x.dtype).tiny, torch.zeros_like(x), x)


def _flushing_sgd(params, lr=1e-3, maximize=False):
    return FlushingSGD(params, lr=lr, maximize=maximize)


@pytest.mark.parametrize(("flush_to_zero", "verdict"), [(True, "pass"), (False, "fail")])
def test_a_subject_that_flushes_is_right_only_where_its_profile_says_so(flush_to_zero, verdict):
    profile = dataclasses.replace(profiles.fast_profile("SGD"), flush_to_zero=flush_to_zero)
    subject = dataclasses.replace(
        subjects.class_subject(_flushing_sgd, "SGD", "flushing", profile), dtypes=("float32",), sparse=False
    )
    result = Campaign(subject, Settings(0, 60, None, ("float32",), ("agreement",))).run()
    assert result.verdict == verdict, [d.summary for d in result.divergences]
