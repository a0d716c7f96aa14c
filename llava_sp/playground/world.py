"""Builds the tiny world's images, training data and held-out questions in LLaVA's formats."""

import argparse
import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_sp.constants import IMAGE_TOKEN
from llava_sp.playground.language import Turn, caption, conversation, held_out_questions, training_questions
from llava_sp.playground.scenes import HELD_OUT, TRAIN, draw, generator, sample_scene
from llava_sp.utils.console import out
from llava_sp.utils.errors import UserError
from llava_sp.utils.files import new_folder, read_json, sha256_file, write_json, write_json_lines, write_text

FORMAT = 1  # raise it when the same options give other files
MANIFEST = "world.json"

Record = dict[str, Any]


@dataclass(frozen=True)
class WorldOptions:
    """What decides every byte of a world.

    Attributes:
        seed: Seed of all scenes.
        train_images: Images of stage 2, ten question rounds each.
        caption_images: Images of stage 1, one caption each: the first of the training images.
        text_samples: Conversations of stage 2 about a written scene, without an image.
        held_out_images: Images of the held-out questions, one question of each task for each.
    """

    seed: int = 0
    train_images: int = 8_000
    caption_images: int = 4_000
    text_samples: int = 400
    held_out_images: int = 150

    def __post_init__(self) -> None:
        if min(self.seed, self.text_samples) < 0 or min(self.train_images, self.caption_images) < 1:
            raise UserError(f"The seed and all counts must be positive, not {asdict(self)}.")
        if self.held_out_images < 2:
            raise UserError(f"--held-out-images must be 2 or more, not {self.held_out_images}.")
        if self.caption_images > self.train_images:
            raise UserError(
                f"--caption-images {self.caption_images} is more than --train-images {self.train_images}: "
                "captions are of training images."
            )


def build_world(output: Path, options: WorldOptions) -> bool:
    """Builds a world in `output`, or leaves it as it is if that very world is there.

    Args:
        output: The folder: absent, empty, or holding the same world.
        options: What to build.

    Returns:
        True if the world was built, False if it was there.

    Raises:
        UserError: `output` holds something else.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        _check_is_world(output, options)
        return False
    with new_folder(output) as scratch:
        _write_images(scratch, options)
        _write_training_data(scratch, options)
        _write_questions(scratch, options)
        write_json(scratch / MANIFEST, {"format": FORMAT, "options": asdict(options), "sha256": _digest(scratch)})
    return True


def image_name(split: str, index: int) -> str:
    """Returns the path of a scene's image under the image folder."""
    return f"{split}/{index:06d}.png"


def with_wrong_images(questions: list[Record]) -> list[Record]:
    """Pairs each question with another scene's image: what a model still answers then, it does not owe to seeing."""
    images = sorted({question["image"] for question in questions})
    other = dict(zip(images, images[1:] + images[:1], strict=True))
    return [question | {"image": other[question["image"]]} for question in questions]


def _write_images(root: Path, options: WorldOptions) -> None:
    jobs = [(TRAIN, index) for index in range(options.train_images)]
    jobs += [(HELD_OUT, index) for index in range(options.held_out_images)]
    for split in (TRAIN, HELD_OUT):
        (root / "images" / split).mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(partial(_write_image, root / "images", options.seed), jobs, chunksize=200)
        for _ in tqdm(drawn, total=len(jobs), desc="images", unit="image"):
            pass


def _write_image(folder: Path, seed: int, job: tuple[str, int]) -> None:
    split, index = job
    rng = generator(seed, split, index)
    image, _ = draw(sample_scene(rng), split, rng)
    image.save(folder / image_name(split, index), compress_level=1)


def _write_training_data(root: Path, options: WorldOptions) -> None:
    captions, conversations = [], []
    for index in range(options.train_images + options.text_samples):
        rng = generator(options.seed, TRAIN, index)
        things = sample_scene(rng)
        if index < options.caption_images:
            turns = [
                {"from": "human", "value": f"{IMAGE_TOKEN}\nDescribe the image."},
                {"from": "gpt", "value": caption(things)},
            ]
            captions.append(_record(index, turns, image_name(TRAIN, index)))
        questions = training_questions(things, rng)
        if index < options.train_images:
            turns = conversation(questions, IMAGE_TOKEN)
            conversations.append(_record(index, turns, image_name(TRAIN, index)))
        else:
            conversations.append(_record(index, conversation(questions, caption(things))))
    write_text(root / "pretrain.json", json.dumps(captions, indent=1) + "\n")
    write_text(root / "finetune.json", json.dumps(conversations, indent=1) + "\n")


def _record(index: int, turns: list[Turn], image: str | None = None) -> Record:
    """Lays a sample out as LLaVA does; a text-only sample has no "image" key."""
    return {"id": f"train_{index:06d}", **({"image": image} if image else {}), "conversations": turns}


def _write_questions(root: Path, options: WorldOptions) -> None:
    questions, annotations = [], []
    for index in range(options.held_out_images):
        rng = generator(options.seed, HELD_OUT, index)
        for question in held_out_questions(sample_scene(rng), rng, present=index % 2 == 0):
            name = f"{index:06d}_{question.task}"
            image = image_name(HELD_OUT, index)
            questions.append({"question_id": name, "image": image, "text": question.text, "category": question.task})
            annotations.append({"question_id": name, **asdict(question)})
    write_json_lines(root / "questions.jsonl", questions)
    write_json_lines(root / "questions_wrong_image.jsonl", with_wrong_images(questions))
    write_json_lines(root / "annotations.jsonl", annotations)


def _digest(root: Path) -> str:
    """Returns one hash over the names and bytes of a world's files; training keeps hidden indexes beside them."""
    total = hashlib.sha256()
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in sorted(path for path in files if path.name != MANIFEST):
        total.update(f"{path.relative_to(root).as_posix()} {sha256_file(path)}\n".encode())
    return total.hexdigest()


def _check_is_world(output: Path, options: WorldOptions) -> None:
    if not (output / MANIFEST).is_file():
        raise UserError(f"{output} exists and is not a world of ours (it has no {MANIFEST}); name another --output.")
    manifest = read_json(output / MANIFEST)
    if not isinstance(manifest, dict) or (manifest.get("format"), manifest.get("options")) != (FORMAT, asdict(options)):
        raise UserError(f"{output} holds another world (see its {MANIFEST}); delete it, or name another --output.")
    if manifest.get("sha256") != _digest(output):
        raise UserError(f"{output} was changed after it was built; delete it to build it again.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `python -m llava_sp.playground build`."""
    default = WorldOptions()
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=default.seed, help="seed of all scenes (default: %(default)s)")
    parser.add_argument("--train-images", type=int, default=default.train_images, help="images of stage 2")
    parser.add_argument("--caption-images", type=int, default=default.caption_images, help="of these, those of stage 1")
    parser.add_argument("--text-samples", type=int, default=default.text_samples, help="conversations without an image")
    parser.add_argument("--held-out-images", type=int, default=default.held_out_images, help="four questions for each")


def run(args: argparse.Namespace) -> None:
    """Runs `python -m llava_sp.playground build`."""
    options = WorldOptions(args.seed, args.train_images, args.caption_images, args.text_samples, args.held_out_images)
    built = build_world(args.output, options)
    out(f"{'Built' if built else 'Found, and reuse,'} the tiny world in {args.output}:")
    out(f"  stage 1: pretrain.json, {options.caption_images} captions")
    out(f"  stage 2: finetune.json, {options.train_images} images and {options.text_samples} texts, 10 questions each")
    out(f"  held out: questions.jsonl and annotations.jsonl, {4 * options.held_out_images} questions")
    out("  control: questions_wrong_image.jsonl, the same questions, each with another scene's image")
