"""What a step costs on many devices, and that they compute what one does."""
