"""Forms of a few operations that are tuned to a platform.

Each module holds the tuned form, a plain ``*_reference`` that JAX differentiates, and the one function that chooses;
tests compare the two. Which platform takes which:

- ``same_convolution``: CPUs alone take the tuned backward pass.
- ``depthwise_convolution``: all take the tuned form, measured on CPUs alone.
- ``deformable_sampling``: CPUs take loops over heads and points, GPUs and TPUs one of two orders of
  ``packed_sampling``, chosen by what the compilers make of it (docs/benchmarks.md); never measured on a device.

The platform is the one that a program is compiled for, here or ahead of time.
"""
