# SPDX-License-Identifier: Apache-2.0
"""What all tables of the configuration have in common: immutable, and closed to unknown keys."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
