"""lbd: a layer-4 load balancer for Linux that forwards in user space over AF_XDP."""

__version__ = "0.1.0"
