"""Models: loading, and the sites where adapters can stand."""

from llm_adapters.model.loading import empty_model, load_config, load_model
from llm_adapters.model.sites import Site, SiteMap, find_sites

__all__ = ["Site", "SiteMap", "empty_model", "find_sites", "load_config", "load_model"]
