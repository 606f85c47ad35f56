from .node_classification import NodeClassification as NodeClassification
from .node_loss import NodeLoss as NodeLoss
from .node_model import NodeModel as NodeModel
from .sharded import ShardedClassification as ShardedClassification
from .subdomain_networks import SubdomainNetworks as SubdomainNetworks
from .synthetic import SyntheticClassification as SyntheticClassification
