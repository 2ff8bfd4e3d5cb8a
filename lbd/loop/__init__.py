"""The worker's poll loop, as inline functions for `_fastpath.pyx`."""
