"""v08 metadata: bytes on disk <-> values. Floor: format (imports words only; no I/O)."""
