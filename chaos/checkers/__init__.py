"""Judges that know only what was asked and what was answered: pure functions of a recorded history."""
