"""What `gsnr-tf` can do, one module for each command."""
