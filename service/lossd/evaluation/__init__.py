"""From a batch on a device to its answers."""
