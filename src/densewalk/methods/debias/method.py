"""SVD debias (INSID3), without any training.

    E   = tokens of one black image, each divided by its length, minus their mean over places       [D, places]
    U   = the first k left singular vectors of E
    z'  = n((I - U U^T) n(z)),  n(x) = x / |x|

The exported file has the initial backbone's weights and k: E depends on the size of the images, so that the network makes it, once
for each size, when it is asked for its map (models/families/position_removal.py). CLS token and attention stay as they are; layers and keys
are not given, so that no evaluation takes the untouched ones for these.
"""

from dataclasses import replace

from densewalk.core.errors import UserError
from densewalk.methods.debias.settings import DebiasSettings
from densewalk.models.backbone import Backbone
from densewalk.models.families.position_removal import require_fewer
from densewalk.models.interface import Network


def debias(settings: DebiasSettings, network: Network) -> Backbone:
    """The same weights with `components` singular vectors of a black image taken out of the map.

    Raises:
        UserError: the network is no vision transformer, position is taken out of it already, or it has too few dimensions.
    """
    if not isinstance(network, Backbone) or network.arch.without_position:
        found = "is no vision transformer" if not isinstance(network, Backbone) else "has position taken out already"
        raise UserError(f"debias cannot change {network.source}, which {found}", todo="choose another `init`")
    require_fewer(settings.components, network.dim)
    changed = Backbone(replace(network.arch, debias=settings.components))
    changed.vit.load_state_dict(network.vit.state_dict())
    changed.report = network.report
    return changed


METHOD = debias
