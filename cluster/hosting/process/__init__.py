"""The process: it opens the data, starts a node and its front, and ends when told to."""
