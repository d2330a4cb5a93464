"""A job from a configuration file."""

from gsnr_tf.engine.config import Config
from gsnr_tf.engine.engine import Engine, initialize
from gsnr_tf.engine.errors import ConfigError
from gsnr_tf.engine.explain import explain
from gsnr_tf.engine.reading import read, schema

__all__ = ["Config", "ConfigError", "Engine", "explain", "initialize", "read", "schema"]
