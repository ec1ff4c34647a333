"""Bond spaces: spectra of the bonds of a generator, cuts, what components are worth, and what inputs put on them."""

from ._bond import Bond as Bond
from ._bonds import Bonds as Bonds
from ._bonds import bonds as bonds
from ._curve import TruncationCurve as TruncationCurve
from ._curve import TruncationPoint as TruncationPoint
from ._curve import draw_curves as draw_curves
from ._curve import truncation_curve as truncation_curve
from ._evolution import Evolution as Evolution
from ._evolution import EvolutionPoint as EvolutionPoint
from ._features import draw_features as draw_features
from ._gradients import bond_gradients as bond_gradients
from ._grow import grow as grow
from ._measures import effective_rank as effective_rank
from ._measures import entropy as entropy
from ._measures import participation as participation
from ._metric import Metric as Metric
from ._model_bonds import ModelBonds as ModelBonds
from ._probe import Probe as Probe
from ._probe import probe as probe
from ._statistics import BondStatistics as BondStatistics
from ._statistics import Watched as Watched
from ._statistics import watch as watch
from ._truncate import Truncation as Truncation
from ._truncate import truncate as truncate
from ._truncate import truncate_together as truncate_together
