"""What one would use instead of this project, written as its users would write it."""
