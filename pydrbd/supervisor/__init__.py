"""Watches the process of a resource and replaces it: after a crash, and for an upgrade."""
