"""The running server: sockets, leadership, wiring."""
