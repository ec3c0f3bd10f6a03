"""Who is active: versions, the ledger, handovers, gates. Pure: time comes in, nothing goes out.

Reading order: records, ledger, commands, meta, gates, readiness, handover, switching, forced; then isolation,
parking, automatic, which only read what those decide.
"""
