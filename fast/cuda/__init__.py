"""The steps of CUDA tensors: Triton kernels made of the same rules as those for the CPU.

:mod:`.runtime` compiles and launches kernels, or has Triton's interpreter run them on CPU tensors; :mod:`.kernels` writes the loops round a
rule; :mod:`.engine` keeps the tables of parameters, gradients and state on the device; :mod:`.adafactor` and :mod:`.lbfgs` have kernels of
their own. Triton is imported when a step needs it.
"""
