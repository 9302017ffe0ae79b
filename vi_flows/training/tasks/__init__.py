"""What is trained: a module with its data, its loss and its figures."""
