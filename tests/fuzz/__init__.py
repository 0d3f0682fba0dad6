"""Coverage-guided fuzzers: one module per target, see docs/testing.md, section Fuzzing."""
