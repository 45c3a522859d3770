"""`darkroom submit FOLDER`: the CSV of its images, kept beside the folder."""

import csv

import pytest

from tests.fakes.command import CliHarness

INSTRUCTION = ("--instruction", "Put the product on a plain white background")


def listed(cli: CliHarness, name: str = "photos.csv") -> list[tuple[str, str]]:
    with (cli.folder / name).open(encoding="utf-8", newline="") as file:
        return [(row["image_url"], row["output_name"]) for row in csv.DictReader(file)]


def test_a_folder_becomes_a_job_of_its_images_in_natural_order(cli: CliHarness) -> None:
    for name in ("10.jpg", "2.jpg", "b/1.webp", "IMG_001.PNG"):
        cli.image(f"photos/{name}")
    cli.write("photos/notes.txt", "buy milk")
    cli.write("photos/.DS_Store", "x")
    cli.image("photos/.thumbnails/2.jpg")
    result = cli.succeed("submit", cli.folder / "photos", *INSTRUCTION)
    assert result.stdout == "jobs/photos\n"
    assert "1 other file skipped: 'photos/notes.txt' is not an image." in result.stderr
    assert listed(cli) == [
        ("photos/2.jpg", "2.png"),
        ("photos/10.jpg", "10.png"),
        ("photos/b/1.webp", "b/1.png"),
        ("photos/IMG_001.PNG", "IMG_001.png"),
    ]
    *images, last = cli.input_bucket.puts
    assert sorted(images) == sorted(f"jobs/{reference}" for reference, _ in listed(cli))
    assert last == "jobs/photos.csv"
    assert cli.input_bucket.objects[last].metadata == {"instruction": INSTRUCTION[1]}


def test_images_added_later_come_after_those_of_the_first_run(cli: CliHarness) -> None:
    cli.image("photos/2.jpg")
    cli.succeed("submit", cli.folder / "photos", *INSTRUCTION)
    path = cli.folder / "photos.csv"
    path.write_text("Image URL,output_name,instruction\nphotos/2.jpg,mug.png,my own words\n")
    cli.image("photos/1.jpg")
    result = cli.succeed("submit", cli.folder / "photos", *INSTRUCTION)
    assert "lists 2 images, 1 of them new" in result.stderr
    assert path.read_text() == (
        "Image URL,output_name,instruction\n"
        "photos/2.jpg,mug.png,my own words\n"
        "photos/1.jpg,1.png,\n"
    )
    unchanged = path.read_bytes()
    cli.succeed("submit", cli.folder / "photos", *INSTRUCTION)
    assert path.read_bytes() == unchanged


def test_images_of_one_name_get_names_of_their_own(cli: CliHarness) -> None:
    for name in ("mug.jpg", "mug.png", "MUG.webp"):
        cli.image(f"photos/{name}")
    cli.succeed("submit", cli.folder / "photos", *INSTRUCTION)
    names = [name for _, name in listed(cli)]
    assert len({name.casefold() for name in names}) == len(names) == 3
    assert "mug.png" in names


@pytest.mark.parametrize("name", ["a, b.jpg", "a.jpg, b.jpg", "a|b.jpg", "[1].jpg", "x,y.png"])
def test_any_file_name_is_one_image(cli: CliHarness, name: str) -> None:
    cli.image(f"photos/{name}")
    cli.succeed("submit", cli.folder / "photos", *INSTRUCTION)
    assert cli.input_bucket.puts == [f"jobs/photos/{name}", "jobs/photos.csv"]


def test_a_name_that_some_systems_cannot_store_gets_the_usual_output_name(cli: CliHarness) -> None:
    cli.image("photos/12:30.jpg")
    cli.succeed("submit", cli.folder / "photos", *INSTRUCTION)
    assert listed(cli) == [("photos/12:30.jpg", "")]


def test_a_folder_without_an_instruction_says_how_to_give_one(cli: CliHarness) -> None:
    cli.image("photos/a.jpg")
    error = cli.error("submit", cli.folder / "photos", exit_code=2)
    assert error.startswith("Error: photos is a folder: add --instruction")
    assert not (cli.folder / "photos.csv").exists()


def test_a_folder_without_images_names_what_it_found(cli: CliHarness) -> None:
    cli.write("photos/a.pdf", b"%PDF-1.7")
    result = cli.run("submit", cli.folder / "photos", *INSTRUCTION)
    assert result.exit_code == 1
    assert "'photos/a.pdf' is a PDF" in result.stderr
    assert "contains no images" in result.stderr


@pytest.mark.parametrize(
    "content", ["name,price\nmug,3\n", "image_url,output_name\nother/a.jpg,a.png\n"]
)
def test_a_csv_of_something_else_beside_the_folder_is_left_alone(
    cli: CliHarness, content: str
) -> None:
    cli.image("photos/a.jpg")
    cli.write("photos.csv", content)
    error = cli.error("submit", cli.folder / "photos", *INSTRUCTION)
    assert "does not list the images of the folder photos" in error
    assert (cli.folder / "photos.csv").read_text() == content
    assert cli.input_bucket.puts == []


def test_a_link_out_of_the_folder_needs_allow_outside(cli: CliHarness) -> None:
    private = cli.image("elsewhere/private.png")
    cli.image("work/photos/a.jpg")
    (cli.folder / "work/photos/linked.png").symlink_to(private)
    submit = ("submit", cli.folder / "work/photos", *INSTRUCTION)
    result = cli.run(*submit)
    assert result.exit_code == 1
    assert "1 image outside the folder of photos.csv: 'photos/linked.png'" in result.stderr
    assert cli.input_bucket.puts == []
    cli.succeed(*submit, "--allow-outside")
    assert "jobs/photos/linked.png" in cli.input_bucket.puts


def test_a_folder_is_quoted_like_its_csv(cli: CliHarness) -> None:
    cli.push_endpoints(
        {
            "name": "g",
            "provider": "gemini",
            "tier": 1,
            "api_keys": ["k"],
            "model": "gemini-3-pro-image",
        }
    )
    for number in range(3):
        cli.image(f"photos/{number}.jpg")
    quoted = cli.json("quote", cli.folder / "photos", *INSTRUCTION)
    assert quoted["rows"] == 3
