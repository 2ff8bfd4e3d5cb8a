# SPDX-License-Identifier: Apache-2.0
"""Everything of lbd that touches AF_XDP and BPF: the steering program, the sockets, their rings."""
