"""What a step costs, measured side by side."""
