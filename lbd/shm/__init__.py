# SPDX-License-Identifier: Apache-2.0
"""What processes of lbd share: segments, the SPSC ring, command and event records, the statistics layout."""
