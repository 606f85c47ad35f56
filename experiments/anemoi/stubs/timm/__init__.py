"""Stands in for timm, of which Anemoi imports one base class: its wheel asks for a torchvision that fits torch."""
