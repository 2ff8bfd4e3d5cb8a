# Empty: makes lbd.xdp a package for cimport, so that `from lbd.xdp.io cimport ...` finds io.pxd.
