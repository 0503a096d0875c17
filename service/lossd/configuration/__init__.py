"""What an operator sets: settings, keys, folders, and the checks before a start."""
