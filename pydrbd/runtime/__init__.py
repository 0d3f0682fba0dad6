"""Runtime: threads, sockets and files around the engine of one resource."""
