"""drbdadm, drbdsetup and drbdmeta: entry points that take what scripts pass and print what they parse.

Floor: outer. Neighbours: cli/ does the work; `pydrbd install-compat` puts the three into a folder. What
only looks (status, role, cstate, dstate, show) never loads click, so that loops over it cost little.
"""
