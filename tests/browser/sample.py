"""A job of 500 rows as a user might have it, with drawn images, to view the gallery with."""

import csv
import io
from dataclasses import replace
from random import Random

from PIL import Image, ImageDraw, ImageFilter

from darkroom.csv_input.reader import JobRow
from darkroom.errors import Reason
from darkroom.jobs import ResultPaths
from darkroom.rows import RowRequest, RowResult, RowState
from tests.fakes.reporting import EDITED, JOB, START, ReportHarness

ROWS = 500
WITH_IMAGES = 16  # rows whose images are in the folder too
WITH_COPIES = 12  # the row with three images
SIDE = 320
INSTRUCTIONS = (
    "Replace the background with a seamless light grey studio sweep and keep the soft shadow.",
    "Put it on a rustic oak table by a window, morning light from the left.",
    "Remove the price tag and the fingerprints.",
    "Same object in matte black.",
    "Give it a warm, late-summer look with shallow depth of field.",
    "Make it look like a watercolour illustration on cold-pressed paper.",
)
LONG = (
    "Place the object on a polished concrete plinth in an empty gallery room. One large soft light "
    "from the upper left, a weak fill from the right, no visible lamps. Keep proportions, label "
    "text and every scratch of the original as they are. The wall behind is off-white with a faint "
    "plaster texture. Leave a third of the frame free above the object for a headline."
)
HOSTILE = '<script>document.title="owned"</script><img src=x onerror=alert(1)> & "quotes"'
ARABIC = "اجعل الخلفية بيضاء بالكامل مع ظل ناعم"

GEMINI = replace(EDITED, outputs=(), latency_ms=0)
OPENAI = RowResult(
    RowState.SUCCEEDED,
    provider="openai",
    endpoint="openai-main",
    model="gpt-image-1.5",
    fallback=True,
    cost_micro_usd=63_000,
    warnings=("aspect_ratio 4:5 is not a size of gpt-image-1.5: 1024x1536 was requested",),
)
REFUSED = replace(
    GEMINI,
    status=RowState.FAILED,
    reason=Reason.REFUSED,
    detail="Gemini: IMAGE_SAFETY, the image was blocked by a safety filter",
    cost_micro_usd=0,
)
NOT_FOUND = RowResult(
    RowState.FAILED,
    reason=Reason.BAD_IMAGE,
    detail="https://cdn.example.com answers 404 Not Found for this image",
)
DOWN = replace(
    OPENAI,
    status=RowState.DEAD,
    reason=Reason.UNAVAILABLE,
    detail="openai-main: HTTP 503 five times, the last after 2 min",
    cost_micro_usd=0,
    warnings=(),
)


def sample_job() -> ReportHarness:
    """500 rows: most succeeded, some by fallback, every common kind of failure, warnings."""
    harness = ReportHarness(_csv())
    harness.start(warnings=("Column alt_text is not one of Darkroom's: carried along.",))
    random = Random(7)
    for row in harness.job_rows:
        if not isinstance(row.request, RowRequest):
            continue
        result = outcome(row, random)
        seconds = row.row * 1.9 + random.uniform(0, 25)
        attempts = 5 if result.status is RowState.DEAD else random.choice((1, 1, 1, 1, 2, 3))
        harness.settle(
            row,
            result,
            updated_at=START + 20 + seconds,
            attempts=attempts,
            possible_duplicate_charges=int(row.row == 44),
        )
        for side in ("before", "after") if result.outputs else ():
            if side == "after" or row.request.images:
                thumb = draw(row.row, edited=side == "after")
                harness.store.put(ResultPaths(JOB).thumb(row.key, side), thumb, "image/webp")
        for copy, output in enumerate(result.outputs if row.row < WITH_IMAGES else ()):
            harness.store.put(output, draw(row.row + copy, edited=True), "image/webp")
    harness.clock.time = START + 1_020
    return harness


def _csv() -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("image_url", "instruction", "sku"))
    for row in range(ROWS):
        image = f"https://cdn.example.com/catalogue/item-{row:04d}.jpg"
        instruction = INSTRUCTIONS[row % len(INSTRUCTIONS)]
        if row % 17 == 5:
            instruction = LONG
        if row % 29 == 3:
            image, instruction = "", "A single ripe pear on a blue plate, hard side light."
        if row % 125 == 60:
            instruction = ""
        if row == 12:
            image = f"{image}|products/side.png|products/top.png"
        instruction = {8: HOSTILE, 9: ARABIC}.get(row, instruction)
        writer.writerow((image, instruction, f"SKU-{row:05d}"))
    return text.getvalue()


def outcome(row: JobRow, random: Random) -> RowResult:
    kind = row.row % 25
    if kind == 4:
        return REFUSED
    if kind == 10:
        return NOT_FOUND
    if row.row % 83 == 20:
        return DOWN
    by_fallback = 180 <= row.row < 240 or kind == 7
    copies = ("", "-1", "-2") if row.row == WITH_COPIES else ("",)
    edited = replace(
        OPENAI if by_fallback else GEMINI,
        outputs=tuple(f"{JOB}/images/{row.key}{copy}.png" for copy in copies),
        latency_ms=int(random.lognormvariate(9.1, 0.35)),
    )
    if kind == 13:
        return replace(edited, cost_micro_usd=None, model="gemini-next-image")
    return edited


def draw(seed: int, *, edited: bool) -> bytes:
    """A vase in front of clutter, or edited, with a plain background."""
    random = Random(seed % 40)
    hue = random.randrange(360)
    background = f"hsl({(hue + 180) % 360}, 45%, 80%)" if edited else "hsl(29, 14%, 54%)"
    image = Image.new("RGB", (SIDE, SIDE), background)
    canvas = ImageDraw.Draw(image)
    for _ in range(0 if edited else 9):
        left, top = random.randrange(-40, SIDE), random.randrange(-40, SIDE)
        colour = f"hsl({random.randrange(360)}, 18%, {random.randrange(40, 65)}%)"
        canvas.rectangle((left, top, left + random.randrange(30, 130), top + 90), fill=colour)
    image = image.filter(ImageFilter.GaussianBlur(3))
    canvas = ImageDraw.Draw(image)
    body, light = f"hsl({hue}, 50%, 50%)", f"hsl({hue}, 75%, 75%)"
    canvas.ellipse((86, 116, 234, 268), fill=body)
    canvas.rectangle((136, 56, 184, 150), fill=body)
    canvas.ellipse((126, 44, 194, 70), fill=light)
    canvas.ellipse((112, 150, 138, 216), fill=light)
    if seed % 3 == 1:
        image = image.crop((0, 30, SIDE, SIDE - 30))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=80)
    return out.getvalue()
