"""Two real nodes under torture: processes, network, roles, and a client that checks its data.

`python -m tests.torture` (see __main__.py). bed.py has the nodes and what can be done to them,
rounds.py draws one round from a seed, faults.py is the table of what may happen, settle.py ends a round
and judges it. Invariants of the judgement: no acknowledged write is lost, the disks end byte-identical,
no command hangs or ends with a traceback, no process dies unless it was killed.
"""
