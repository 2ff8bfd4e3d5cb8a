# The worker's turn: where the pure engine meets sockets, rings and the clock. Still no Python object and no GIL.
