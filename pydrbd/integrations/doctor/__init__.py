"""`pydrbd doctor`: gathers facts (gather_*), judges them (host, resource, volume), prints (report).

Floor: outer. The judges are pure functions over what was gathered, in tables name -> function.
"""
