"""pydrbd: a second implementation of DRBD 8.4, in userspace.

Importing the package costs nothing; each floor (see docs/architecture.md) is imported by name.
Python's -O switch is refused because the engine's assertions are part of its safety.
"""

if not __debug__:
    raise ImportError("pydrbd must not run with python -O or PYTHONOPTIMIZE: its assertions guard data")
