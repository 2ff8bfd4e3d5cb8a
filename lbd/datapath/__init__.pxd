# The packet engine: pure inline functions over bytes, tables and time. Nothing here knows sockets, rings or Python.
