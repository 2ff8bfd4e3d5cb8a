# SPDX-License-Identifier: Apache-2.0
"""The configuration: its model, the TOML file with line numbers, the checks, the reference made from it."""

from lbd.config.model import Config
from lbd.config.problem import ConfigError, Problem
from lbd.config.source import load, loads

__all__ = ["Config", "ConfigError", "Problem", "load", "loads"]
