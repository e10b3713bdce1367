"""What every settings model shares.

Settings are plain pydantic models without torch, so that Snakemake reads and validates a study within a second.
A default lives here and nowhere else; every field's docstring becomes its description in the JSON schema.
"""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Immutable, and strict about unknown keys: a typing error in a study must not go unnoticed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)
