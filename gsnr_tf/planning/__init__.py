"""What a step would take on more workers, another network, another model."""
