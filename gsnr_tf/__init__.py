"""Large-batch training for Keras 3 by gradient signal to noise ratio (GSNR)."""
__version__ = "0.1.0"
