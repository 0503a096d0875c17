"""``python -m lossd.cli``."""

from lossd.cli import main

main()
