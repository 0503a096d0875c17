"""The part of the OpenAPI document about runs."""
