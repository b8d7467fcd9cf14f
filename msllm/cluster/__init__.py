"""What a cluster of Ascend cards needs besides the model: rank tables and how jobs start."""
