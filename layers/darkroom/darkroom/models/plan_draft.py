"""A plan in the making: what is asked for, of which model, and what had to be changed."""

from dataclasses import dataclass, field

from darkroom.models.model_types import Model
from darkroom.rows import RowRequest


@dataclass(slots=True)
class Draft:
    request: RowRequest
    model: Model
    warnings: list[str] = field(default_factory=list)

    def warn(self, sentence: str) -> None:
        """Nothing is degraded in silence: the sentence goes into the manifest."""
        self.warnings.append(sentence)
