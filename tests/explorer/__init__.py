"""A package: the browser's fixtures end with its tests, because no other test can run asyncio while Playwright runs."""
