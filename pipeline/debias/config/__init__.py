"""What a run is: its settings, read from YAML and `key=value`, checked, written back."""

from debias.config.data import DataConfig, DataSource, PlantedBias
from debias.config.reading import dump_config, load_config, parse, read_yaml
from debias.config.run import BiasWeight, PromptConfig, RunConfig

__all__ = [
    "BiasWeight",
    "DataConfig",
    "DataSource",
    "PlantedBias",
    "PromptConfig",
    "RunConfig",
    "dump_config",
    "load_config",
    "parse",
    "read_yaml",
]
