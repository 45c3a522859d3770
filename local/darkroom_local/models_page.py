"""docs/models.md from the table of models; `python -m darkroom_local.models_page` writes it."""

import sys
from collections.abc import Iterable
from pathlib import Path

from darkroom.models.catalog import CHECKED, DEFAULTS, MIB, MODELS, Model
from darkroom.providers.registry import PROVIDERS, Provider

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

_INTRODUCTION = f"""\
# Models

Written by `python -m darkroom_local.models_page` from
`layers/darkroom/darkroom/models/model_table.py`; do not edit it here. Checked on
{CHECKED.isoformat()}.

An endpoint's `model`, the `model` column of a CSV and the job option `model` take any of these
names, also with the date of a snapshot behind it. Another name is called too, with the defaults at
the end of this page: the manifest warns, its price is not known, and a job with a budget refuses
it. A model that its provider has shut down is called as well, with a warning: a compatible endpoint
may still serve it.

What a row asks for and a model cannot give is never left out in silence: the manifest's row says
what was used instead. A mask, or a picture to edit, is never left out at all: a model that cannot
take it is passed over, and a row that no endpoint can honour fails with that reason.
"""
_NONE = "-"
_PRICES = """\
## Prices

US dollars. Where a call's answer counts its tokens, the manifest's `cost_usd` is the sum of their
prices; else it is the price of the picture. A quote and a budget take the dearest that the row's
settings allow, with its instruction, its input pictures and an allowance for thoughts.

Some figures are second hand: the source named is a page that tells the provider's price page.
Compare them with the provider's own before you rely on them, and correct the table where it is out
of date: a job's cost is only as right as this table.
"""


def page() -> str:
    """The whole page, ending with a line break."""
    blocks = [
        _INTRODUCTION,
        *(_section(provider) for provider in Provider),
        _PRICES + "\n" + _table(_PRICE_HEAD, map(_price_row, MODELS)),
        _defaults(),
        _sources(),
    ]
    return "\n".join(blocks)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _section(provider: Provider) -> str:
    models = [model for model in MODELS if model.provider is provider]
    head = ("Model", "Does", "Input", "Shape", "Quality", "n", "Note")
    return f"## {PROVIDERS[provider].display_name}\n\n" + _table(head, map(_row, models))


def _row(model: Model) -> tuple[str, ...]:
    return (
        ", ".join(f"`{name}`" for name in (model.name, *model.aliases)),
        _does(model),
        _input(model),
        _shape(model),
        ", ".join(model.qualities) or _NONE,
        str(model.max_n),
        _note(model),
    )


def _does(model: Model) -> str:
    found = {"edit": model.edits, "generate": model.generates, "mask": model.masks}
    return ", ".join(name for name, can in found.items() if can)


def _input(model: Model) -> str:
    if not model.edits:
        return _NONE
    kinds = ", ".join(mime.removeprefix("image/") for mime in model.input_formats)
    many = f"up to {model.max_images}" if model.max_images > 1 else "one"
    sizes = f"{round(model.max_image_bytes / MIB)} MiB each"
    if model.max_request_bytes:
        sizes += f", {model.max_request_bytes // MIB} MiB together"
    return f"{many} ({kinds}; {sizes}{'; square' if model.square_input else ''})"


def _shape(model: Model) -> str:
    parts = []
    if model.aspect_ratios:
        parts.append(f"aspect ratios {', '.join(model.aspect_ratios)}")
    if model.resolutions:
        parts.append(", ".join(model.resolutions))
    if model.sizes:
        parts.append(", ".join(model.sizes))
    if model.free_sizes:
        parts.append("any size in multiples of 16 up to 3840, from 1:3 to 3:1, 0.66 to 8.3 MP")
    return "; ".join(parts)


def _note(model: Model) -> str:
    retired = f"shut down on {model.retired_on.isoformat()}" if model.retired_on else ""
    names = [f"`{name}` until {day.isoformat()}" for name, day in model.retired_names.items()]
    return "; ".join(text for text in (retired, *names, model.note) if text)


_PRICE_HEAD = (
    "Model",
    "One picture",
    "Million tokens: words in / images in / images out / words out",
)


def _price_row(model: Model) -> tuple[str, ...]:
    pictures = ", ".join(
        f"{key.removeprefix('any/').replace('/', ' ')} ${price / 1e6:.4g}"
        for key, price in model.picture_prices.items()
    )
    prices = model.prices
    tokens = (
        f"${prices.text_in:g} / ${prices.image_in:g} / ${prices.image_out:g} / ${prices.text_out:g}"
        if prices
        else _NONE
    )
    return f"`{model.name}`", pictures, tokens


def _defaults() -> str:
    lines = "".join(
        f"- {provider.value}: {_does(model)}; input {_input(model)}; {_shape(model)}; quality "
        f"{', '.join(model.qualities) or _NONE}; n {model.max_n}.\n"
        for provider, model in DEFAULTS.items()
    )
    return f"## Any other model\n\n{lines}"


def _sources() -> str:
    found = list(dict.fromkeys(source for model in MODELS for source in model.sources))
    return "## Sources\n\n" + "".join(f"- {source}\n" for source in found)


def main() -> int:
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{target}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
