"""The CUDA kernels of stepcheck.fast, compiled ahead of time and counted: no GPU is needed.

:mod:`.kernels` says which there are and what each should count (:mod:`.model`; of optimizers that are no rule, :mod:`.families`),
:mod:`.compile` compiles them in parallel and counts what :mod:`.ptx` and :mod:`.sass` read, along the control flow that :mod:`.flow`
follows; :mod:`.occupancy` says how many warps find room, :mod:`.launches` how often a step launches, :mod:`.tables` shows it all, and
:mod:`.facts` is what the error budgets take from it.
"""
