"""The folder of a training, the model of a recipe, and the trained model ready for use."""
