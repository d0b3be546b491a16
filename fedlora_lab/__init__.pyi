from . import (
    audit as audit,
    flower as flower,
    measures as measures,
    methods as methods,
    plots as plots,
    privacy as privacy,
    report as report,
    tasks as tasks,
    theory as theory,
)
from ._utils.environment import __version__ as __version__
from .federated.amplification import noise_amplification as noise_amplification
from .federated.compare import best as best, compare as compare
from .federated.records import (
    predict as predict,
    save_adapter as save_adapter,
    to_frame as to_frame,
)
from .federated.run import run as run
from .methods.method import Cycle as Cycle, Method as Method
from .methods.optimizers import SGD as SGD, AdamW as AdamW
from .methods.plan import Lora as Lora, Plan as Plan
from .methods.source_code import show as show
from .privacy.ledger import Ledger as Ledger
from .privacy.plan import Privacy as Privacy
from .recipes.dry_run import dry_run as dry_run
from .recipes.finetune import finetune as finetune
from .recipes.rehearsal import rehearse as rehearse
from .recipes.suggested_rates import suggest_lr as suggest_lr
from .tasks import partition as partition

__version__: str
__all__: list[str]
