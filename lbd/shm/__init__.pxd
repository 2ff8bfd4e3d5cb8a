# Empty: makes lbd.shm a package for cimport, so that `from lbd.shm.ring cimport ...` finds ring.pxd.
