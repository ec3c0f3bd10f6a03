"""The workflow state machine: state, input and now in; one transaction out. Pure."""
