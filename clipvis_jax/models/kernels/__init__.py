"""Forms of a few operations that are tuned to a platform.

Each module holds the tuned form, a plain ``*_reference`` that JAX differentiates, and the one place where the form is
chosen. Every platform takes the tuned form today, unless its module says otherwise; tests compare it with the
reference.
"""
