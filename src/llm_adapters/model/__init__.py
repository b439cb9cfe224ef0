"""Models: loading, and the sites where adapters can stand."""

from llm_adapters.model.loading import dtype_on, empty_model, load_config, load_model, load_tokenizer
from llm_adapters.model.sites import Site, SiteMap, find_sites

__all__ = ["Site", "SiteMap", "dtype_on", "empty_model", "find_sites", "load_config", "load_model", "load_tokenizer"]
