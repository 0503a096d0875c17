"""Curves of losses, and how they are drawn."""
