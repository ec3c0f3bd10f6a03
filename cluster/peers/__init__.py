"""How nodes of a region talk to each other: ordered messages over one pair of connections a peer."""
