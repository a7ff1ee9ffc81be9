"""What wraps an optimizer where a model is trained by several processes. Two on the CPU play all cases."""

import copy
import dataclasses
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))  # as a script it has its own folder alone

from newton_schulz import iterate_in_float64
from ranks import RANKS, assert_passed, play

from programs import side_by_side
from programs.side_by_side import OPTIONS, STEPPING, STEPS, Outcome, inputs, keys, loss, model, same, state, weights

CASES = {}


def case(function):
    """A function that every rank calls with an empty folder that they share; it raises where the product is wrong."""
    CASES[function.__name__] = function
    return function


@pytest.mark.slow
def test_two_ranks_pass_all_cases(tmp_path):
    assert_passed(__file__, CASES, tmp_path)
    side_by_side.read(tmp_path / "found.json")


# --- What the ranks do


def whole(tensors):
    return [t.full_tensor() if hasattr(t, "full_tensor") else t for t in tensors]


def trained(name, made, optimizer, steps):
    """Each rank has batches of its own."""
    for step in steps:
        optimizer.zero_grad()
        loss(made, inputs(name, RANKS * step + torch.distributed.get_rank())).backward()
        optimizer.step()


def sharded(name):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    made, mesh = model(name), init_device_mesh("cpu", (RANKS,))
    for layer in (made[0], made[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(made, mesh=mesh)


@case
def distributed_data_parallel(folder):
    for name in STEPPING:

        def program(cls, name=name):
            made = nn.parallel.DistributedDataParallel(model(name))
            optimizer = cls(made.parameters(), **OPTIONS[name])
            trained(name, made, optimizer, range(STEPS))
            return Outcome([*weights(made), *state(optimizer)], keys(optimizer))

        same("DistributedDataParallel", name, program)


@case
def fully_sharded(folder):
    # On shards, torch 2.13 refuses to step these two: "in-place operations that require placement changes are not supported".
    for name in [n for n in STEPPING if n not in ("Adafactor", "Rprop")]:

        def program(cls, name=name):
            made = sharded(name)
            optimizer = cls(made.parameters(), **OPTIONS[name])
            trained(name, made, optimizer, range(STEPS))
            return Outcome(whole([*weights(made), *state(optimizer)]), keys(optimizer))

        same("FSDP2 (fully_shard)", name, program)


@case
def zero_redundancy(folder):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    for name in STEPPING:
        for overlapped in (False, True):

            def program(cls, name=name, as_views=overlapped):
                made = nn.parallel.DistributedDataParallel(model(name), gradient_as_bucket_view=as_views)
                options = {"optimizer_class": cls, "parameters_as_bucket_view": as_views}
                optimizer = ZeroRedundancyOptimizer(made.parameters(), **options, **OPTIONS[name])
                assert type(optimizer.optim) is cls
                trained(name, made, optimizer, range(STEPS // 2))
                optimizer.consolidate_state_dict(to=0)
                saved = [copy.deepcopy(optimizer.state_dict())] if torch.distributed.get_rank() == 0 else [None]
                torch.distributed.broadcast_object_list(saved, 0)
                own = [(n, sorted(s)) for n, s in saved[0]["state"].items()]
                optimizer = ZeroRedundancyOptimizer(made.parameters(), **options, **OPTIONS[name])
                optimizer.load_state_dict(saved[0])
                trained(name, made, optimizer, range(STEPS // 2, STEPS))
                return Outcome([*weights(made), *state(optimizer.optim)], (own, keys(optimizer.optim)))

            same("ZeroRedundancyOptimizer", name, program)


@case
def local_steps_and_averages(folder):
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    for name in STEPPING:

        def program(cls, name=name):
            made = model(name)
            inner = cls(made.parameters(), **OPTIONS[name])
            optimizer = PostLocalSGDOptimizer(inner, PeriodicModelAverager(period=2, warmup_steps=2))
            trained(name, made, optimizer, range(STEPS))
            return Outcome([*weights(made), *state(inner)], keys(inner))

        same("PostLocalSGDOptimizer", name, program)


@case
def checkpoints_of_torch_distributed(folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import state_dict as helpers

    ways = {
        "sharded": {},
        "whole": {"full_state_dict": True, "cpu_offload": True},
        "flat": {"flatten_optimizer_state_dict": True},
    }
    for way, chosen in ways.items():
        options = helpers.StateDictOptions(**chosen)
        for name in ("AdamW", "SGD", "Muon"):

            def program(cls, name=name, options=options, way=way):
                at = folder / f"{way}-{name}-{cls.__module__}-{cls.__qualname__}"
                made = sharded(name)
                optimizer = cls(made.parameters(), **OPTIONS[name])
                trained(name, made, optimizer, range(STEPS // 2))
                saved = {"of": helpers.get_optimizer_state_dict(made, optimizer, options=options)}
                seen = sorted(saved["of"]) if way == "flat" else sorted(saved["of"].get("state", ()))
                dcp.save({**saved, "model": helpers.get_model_state_dict(made)}, checkpoint_id=at)
                other = sharded(name)
                resumed = cls(other.parameters(), **OPTIONS[name])
                read = {"of": helpers.get_optimizer_state_dict(other, resumed, options=options)}
                read["model"] = helpers.get_model_state_dict(other)
                if way == "whole":  # which rank 0 alone has
                    read["of"] = saved["of"]
                    dcp.load({"model": read["model"]}, checkpoint_id=at)
                else:
                    dcp.load(read, checkpoint_id=at)
                helpers.set_model_state_dict(other, read["model"])
                spread = dataclasses.replace(options, broadcast_from_rank0=way == "whole")
                helpers.set_optimizer_state_dict(other, resumed, read["of"], options=spread)
                trained(name, other, resumed, range(STEPS // 2, STEPS))
                return Outcome(whole([*weights(other), *state(resumed)]), (seen, keys(resumed)))

            same("torch.distributed.checkpoint", name, program)


def main():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    from _pytest.monkeypatch import MonkeyPatch

    iterate_in_float64(MonkeyPatch())
    play(CASES)
    if sys.argv[1] == "0":
        side_by_side.save(Path(sys.argv[2]) / "found.json")


if __name__ == "__main__":
    main()
