from .module_layers import ModuleLayers as ModuleLayers
