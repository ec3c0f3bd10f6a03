"""`holdfast demo`: a research agent that survives two SIGKILLs, and the evidence that it did.

Reading order: workflow (the agent), activities (its tools), documents, model and ledger (what they
use), worker (the process that runs them), director (what happens to it), servers and region (what it runs
on, and who is killed), evidence and takeover (what is proved), timeline (how it is shown), __main__ (the
command).

The agent is what a user of any Temporal SDK would write: an unmodified worker, no import of a server's.
"""
