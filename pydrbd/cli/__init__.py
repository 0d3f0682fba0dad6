"""The command `pydrbd`. Floor: outer. One file per subject; main.py has the table of verbs."""
