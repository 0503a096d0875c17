"""A batch on a device to its answers."""
