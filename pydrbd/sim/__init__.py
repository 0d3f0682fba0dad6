"""The deterministic simulator: a second driver over the engine's scripts.

Floor: sim (uses the engine and what is below it, never runtime).
"""
