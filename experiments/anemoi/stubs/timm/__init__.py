"""Stands in for timm, of which Anemoi imports one base class and whose wheel asks for a torchvision of the same torch."""
