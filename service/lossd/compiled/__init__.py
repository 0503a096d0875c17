"""Compiled passes for the most used losses: each is one walk over a batch that lies in main memory.

A pass checks the targets, computes loss, gradient and norms, and counts what the metrics need. The general way takes a
tensor operation for each of these steps. A pass explains nothing: it leaves a request with a target out of range or a
number that is not finite to the general way, which describes the problem. Both agree to the rounding of the inputs'
dtype.

:class:`lossd.compiled.passes.Passes` is what a worker owns. It loads or compiles the kernels, and finds the pass of a
recipe as soon as its kernels are ready.
"""
