"""A job of 500 rows as a user might have it, with drawn images, to view the gallery with."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFilter

from darkroom.csv_input.reader import JobRow
from darkroom.errors import Reason
from darkroom.images.containers import add_thumbnail
from darkroom.jobs import ResultPaths
from darkroom.rows import RowRequest, RowResult, RowState
from tests.fakes.reporting import EDITED, JOB, START, ReportHarness

ROWS = 500
WITH_IMAGES = 16  # rows whose images are in the folder too
RESHAPED = 15  # the row whose edited image has another aspect ratio
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
ATTACKS = (
    HOSTILE,
    "</script><script>document.title='owned'</script>",
    "<!--<script>",
    '"><svg onload=alert(1)>',
    "</style><style>*{display:none}</style>",
    "javascript:alert(1)",
    "]]>{{ summary }}{% raw %}",
    "'; document.title = 'owned'; '",
    "<iframe srcdoc='<script>parent.document.title=1</script>'>",
    "\\u003cscript>\u2028\u202e<base href=https://evil.test/>",
)
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
                seed = row.row + (side == "after" and row.row == RESHAPED)
                thumb = draw(seed, edited=side == "after")
                if side == "before" and row.row < WITH_IMAGES:
                    large = draw(row.row, edited=False, longest_side=1_280)
                    thumb = add_thumbnail(large, thumb)
                harness.store.put(
                    ResultPaths(JOB).thumb(result.outputs[0], side), thumb, "image/webp"
                )
        for copy, output in enumerate(result.outputs if row.row < WITH_IMAGES else ()):
            drawn = draw(row.row + copy + (row.row == RESHAPED), edited=True, longest_side=1_024)
            harness.store.put(output, drawn, "image/webp")
    harness.clock.time = START + 1_020
    return harness


def download(harness: ReportHarness, folder: Path) -> Path:
    """Make the report, and store the job as `darkroom download` does."""
    harness.report()
    for key, (body, _, _) in harness.store.objects.items():
        path = folder / key.removeprefix(f"{JOB}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return folder


def hostile_job() -> ReportHarness:
    """30 rows whose every text tries to become markup or to break a policy."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("image_url", "instruction", "<b onclick=alert(1)>sku"))
    for number in range(30):
        attack = ATTACKS[number % len(ATTACKS)]
        writer.writerow((f"https://x.test/{number}.jpg", f"{number} {attack}", attack))
    harness = ReportHarness(text.getvalue())
    harness.start(warnings=ATTACKS)
    for row in harness.job_rows:
        attack = ATTACKS[row.row % len(ATTACKS)]
        failed = replace(REFUSED, detail=attack, endpoint=attack)
        edited = replace(GEMINI, outputs=(f"{JOB}/images/{row.key}.png",), warnings=(attack,))
        harness.settle(row, failed if row.row % 3 == 0 else edited)
    return harness


def large_job(rows: int) -> ReportHarness:
    """All succeeded, all with previews."""
    lines = (f"https://cdn.example.com/item-{n:05d}.jpg,Make item {n} blue.\n" for n in range(rows))
    harness = ReportHarness(f"image_url,instruction\n{''.join(lines)}")
    harness.start()
    images = {(n, edited): draw(n, edited=edited) for n in range(40) for edited in (False, True)}
    for row in harness.job_rows:
        result = replace(GEMINI, outputs=(f"{JOB}/images/{row.key}.png",))
        harness.settle(row, result)
        for side in ("before", "after"):
            thumb = images[row.row % 40, side == "after"]
            harness.store.put(ResultPaths(JOB).thumb(result.outputs[0], side), thumb, "image/webp")
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


def draw(seed: int, *, edited: bool, longest_side: int = SIDE) -> bytes:
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
    if longest_side != SIDE:
        image = image.resize((longest_side, longest_side * image.height // SIDE))
    out = io.BytesIO()
    image.save(out, "WEBP", quality=80)
    return out.getvalue()
