"""Settings of a run: typed, ranged and explained where they stand; YAML and flags in, one checked configuration out."""

from bitgen.config.schema import exit_on_config_error, save_config
from bitgen.config.stage1 import Config, load_config, parse_config
from bitgen.config.values import ConfigError

__all__ = ["Config", "ConfigError", "exit_on_config_error", "load_config", "parse_config", "save_config"]
