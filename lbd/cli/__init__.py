# SPDX-License-Identifier: Apache-2.0
"""The command `lbd`. Fast to start: a command that asks the daemon imports argparse, json and http.client
alone.
"""
