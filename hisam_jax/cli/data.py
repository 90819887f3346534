"""`hisam prepare`, `hisam download`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hisam_jax.cli.common import Verb, count, option, seed, share
from hisam_jax.cli.reader_flags import add_reader_flags, given_options
from hisam_jax.data.public_sets import PUBLIC_SETS
from hisam_jax.errors import UserError

SOURCES = ("movielens", "amazon2014", "amazon2023", "sequences", "recbole", "table", "shop")
RUNNERS = ("direct", "flink", "spark", "dataflow")
PROTOCOLS = ("per_user_time", "chronological", "leave_one_out")
SUMMARY_KEYS = ("users", "items", "interactions", "modalities", "split", "history", "cold")
SUMMARY_KEYS += ("has_ratings", "has_timestamps", "dropped_modalities", "rejected", "seconds")


def _prepare_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--source",
        metavar="NAME",
        required=True,
        help=f"the form of the raw data: {', '.join(SOURCES)} (the embedded generator), or one that a module of "
        "$HISAM_PLUGINS registers",
    )
    add(
        "--raw",
        metavar="DIR",
        help="the folder of raw data (default: OUT.raw for shop, which writes it; else required)",
    )
    add("--out", metavar="DIR", required=True, help="where the dataset goes; replaced as a whole at the end")
    add("--images", metavar="DIR", help="the folder of pictures, one an item")
    add("--protocol", choices=PROTOCOLS, default="leave_one_out", help="which events are held out")
    add(
        "--text-encoder",
        metavar="NAME",
        help="tfidf_svd, word_vectors (knows synonyms), sentence_transformers:NAME, precomputed:FILE or none; "
        "tfidf_svd:512 is it with 512 numbers an item, not 128, and so for the others that are fitted (default: "
        "tfidf_svd, or that of --encoders-from)",
    )
    add(
        "--image-encoder",
        metavar="NAME",
        help="hog_color, clip:NAME, precomputed:FILE or none (default: hog_color, or that of --encoders-from)",
    )
    add(
        "--behaviour-encoder",
        metavar="NAME",
        help="ppmi_svd (which items users took together in training), precomputed:FILE or none (default: none, or that "
        "of --encoders-from)",
    )
    add(
        "--encoders-from",
        metavar="DATASET",
        help="a prepared dataset whose fitted encoders are used: features of unchanged items stay equal, so that "
        "`hisam ids --extend` goes from its IDs to those of the grown catalogue (default: fit on the training items)",
    )
    add(
        "--min-user",
        metavar="N",
        type=count,
        default=1,
        help="events that a user needs to stay, applied with --min-item until nothing changes",
    )
    add("--min-item", metavar="N", type=count, default=1, help="events that an item needs to stay")
    add("--max-history", metavar="N", type=count, default=300, help="latest events that the model sees of a user")
    add(
        "--max-rejected",
        metavar="SHARE",
        type=share,
        default=0.05,
        help="share of unusable rows, 0 to 1, above which nothing is prepared",
    )
    add(
        "--seed",
        metavar="N",
        type=seed,
        default=0,
        help="seed of the tie-break among equal timestamps",
    )
    add(
        "--cache",
        metavar="DIR",
        help="where encoded features are kept between calls, by content (default: $HISAM_CACHE or ~/.cache/hisam_jax)",
    )
    beam = parser.add_argument_group("logs past one machine (needs pip install 'hisam_jax[beam]')")
    beam.add_argument(
        "--runner",
        choices=RUNNERS,
        help="prepares the events as Apache Beam pipelines, with the same result (default: none, on this machine)",
    )
    beam.add_argument(
        "--runner-option",
        metavar="KEY=VALUE",
        type=option,
        action="append",
        default=[],
        help="an option of Beam's, such as temp_location=gs://BUCKET/FOLDER; may be given several times; dataflow "
        "needs project, region and temp_location (default: Beam's own)",
    )
    add_reader_flags(parser)


def _prepare(arguments: argparse.Namespace) -> dict[str, Any]:
    from hisam_jax.data.prepare import prepare
    from hisam_jax.data.readers import reader_options

    reader_options(arguments.source)  # refuses one that is not there, before anything that depends on it
    if arguments.raw is None and arguments.source != "shop":
        raise UserError("no folder of raw data", field="--raw", expected=f"--raw DIR with --source {arguments.source}")
    manifest = prepare(
        arguments.source,
        arguments.raw or f"{Path(arguments.out)}.raw",
        arguments.out,
        images=arguments.images,
        protocol=arguments.protocol,
        text_encoder=arguments.text_encoder,
        image_encoder=arguments.image_encoder,
        behaviour_encoder=arguments.behaviour_encoder,
        encoders_from=arguments.encoders_from,
        min_user=arguments.min_user,
        min_item=arguments.min_item,
        seed=arguments.seed,
        max_history=arguments.max_history,
        max_rejected=arguments.max_rejected,
        cache_dir=arguments.cache,
        reader_options=given_options(arguments),
        runner=arguments.runner,
        runner_options=dict(arguments.runner_option),
    )
    return {"dataset": str(arguments.out), **{key: manifest[key] for key in SUMMARY_KEYS if key in manifest}}


def _download_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help=f"a public data set: {', '.join(PUBLIC_SETS)}")
    parser.add_argument("--out", metavar="DIR", required=True, help="where the raw files go; a broken download goes on")
    parser.add_argument(
        "--mirror", metavar="URL", help="a folder with the same file names, asked in place of the official one"
    )


def _download(arguments: argparse.Namespace) -> Any:
    from hisam_jax.data.download import download

    return download(arguments.name, arguments.out, mirror=arguments.mirror)


VERBS = {
    "prepare": Verb(
        "Turns raw logs and a catalogue into a dataset with features and splits.", _prepare_flags, _prepare
    ),
    "download": Verb("Fetches a public data set, with resume and checksums.", _download_flags, _download),
}
