"""A job from a configuration file."""

from typing import TYPE_CHECKING

from gsnr_tf._lazy import lazy_names
from gsnr_tf.engine.config import Config
from gsnr_tf.engine.errors import ConfigError
from gsnr_tf.engine.explain import explain
from gsnr_tf.engine.load import read, schema

if TYPE_CHECKING:
    from gsnr_tf.engine.engine import Engine, initialize

__all__ = ["Config", "ConfigError", "Engine", "explain", "initialize", "read", "schema"]

# The configuration is read and checked without TensorFlow, which a job needs.
__getattr__, __dir__ = lazy_names(__name__, {"gsnr_tf.engine.engine": ("Engine", "initialize")})
