"""Forms of a few operations that are tuned to a platform.

Each module holds the tuned form, a plain ``*_reference`` that JAX differentiates, and the one function that chooses;
tests compare the two. Which platform takes which:

- ``same_convolution``: CPUs alone take the tuned backward pass.
- ``depthwise_convolution``, ``deformable_sampling``: all take the tuned form, measured on CPUs alone. On GPUs and TPUs
  the plain look-ups may be quicker, but the backward pass that JAX derives from them keeps 2.7 GB for a layer at
  1024x1024; a measurement there is to decide.
"""
