"""`holdfast demo`: a research agent that survives three SIGKILLs, and the evidence that it did.

Reading order: workflow (the agent), activities (its tools), documents, model and ledger (what they use),
worker (the process that runs them), director (what happens to it), servers, region and regions (what it
runs on, and who is killed), evidence, takeover and failovers (what is proved), timeline (how it is shown),
__main__ (the command).

The agent is what a user of any Temporal SDK would write: an unmodified worker, no import of a server's.
"""
