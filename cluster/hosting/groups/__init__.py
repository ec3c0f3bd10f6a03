"""Raft groups on one node: each group's replica, and the rounds that write all of them."""
