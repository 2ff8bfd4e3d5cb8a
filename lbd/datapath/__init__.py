"""The packet engine's declarations (`.pxd`) and the tables of names that Python needs of them."""
