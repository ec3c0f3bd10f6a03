"""Consensus core: a pure state machine that is stepped, ticked and asked for what is ready."""
