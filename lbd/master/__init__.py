# SPDX-License-Identifier: Apache-2.0
"""The daemon `lbd run`: desired state, the kernel's mirror, worker supervision, exporter, control socket."""
