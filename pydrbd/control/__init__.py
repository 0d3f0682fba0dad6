"""The control socket of a resource's process: framing, server and client.

Floor: control. Nothing here imports the engine, the runtime or uvloop; values are plain dicts.
"""
