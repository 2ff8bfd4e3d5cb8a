# SPDX-License-Identifier: Apache-2.0
"""Health checks: core.py schedules, target.py judges, check.py says what a checker is; one file a checker."""
