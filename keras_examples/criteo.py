"""Criteo's click logs: files of lines as `tf.data` batches of numbers and ids.

A line has 40 fields with tabs between: the label (0 or 1), 13 integers, and 26 categories,
each of up to 8 hexadecimal digits. Integers and categories may be missing (an empty field).
"""

import functools
import glob
import gzip
import re

import tensorflow as tf

from gsnr_tf import shard

NUMBERS, CATEGORIES = 13, 26
FIELDS = 1 + NUMBERS + CATEGORIES
# One match for each line checks all its fields, at a fraction of what splitting takes.
FORMS = ["[01]"] + ["(?:-?[0-9]+)?"] * NUMBERS + ["[0-9a-fA-F]{0,8}"] * CATEGORIES
LINE = "\t".join(FORMS)


def find_files(patterns):
    """Sorted paths of all files that the patterns name; a path is a pattern of itself."""
    found = set()
    for pattern in patterns:
        paths = glob.glob(pattern, recursive=True)
        if not paths:
            raise SystemExit(f"No file has this name. Received: {pattern}")
        found.update(paths)
    return sorted(found)


def opened(path):
    """A file to read bytes from, unpacked where its name ends in .gz."""
    return gzip.open(path) if path.endswith(".gz") else open(path, "rb")


def count_lines(paths):
    """Number of lines of all files."""
    lines = 0
    for path in paths:
        last = b"\n"
        with opened(path) as file:
            while block := file.read(1 << 24):
                lines += block.count(b"\n")
                last = block
        lines += not last.endswith(b"\n")
    return lines


def read_lines(paths):
    """`tf.data.Dataset` of the text of all lines, scalars, file after file."""
    kinds = ["GZIP" if path.endswith(".gz") else "" for path in paths]
    files = tf.data.Dataset.from_tensor_slices((paths, kinds))
    return files.flat_map(lambda path, kind: tf.data.TextLineDataset(path, compression_type=kind))


def training_batches(paths, batch, rows, buffer, seed):
    """This rank's part of batches without end, each pass in an order of its own.

    Args:
        paths: List of str.
        batch: Int, examples of all ranks.
        rows: Int, of each embedding table.
        buffer: Int, lines among which the next one is drawn.
        seed: Int.

    Returns:
        `tf.data.Dataset` of `parse`'s results, equally many on all ranks.
    """
    lines = read_lines(paths).shuffle(buffer, seed=seed).repeat()
    return _own_part(lines.batch(batch, drop_remainder=True), rows, paths)


def evaluation_batches(paths, batch, rows):
    """This rank's part of all lines, once, in order; see `training_batches`."""
    return _own_part(read_lines(paths).batch(batch), rows, paths)


def _own_part(batches, rows, paths):
    # Horovod: each rank keeps its lines of every batch, and parses no others.
    own = shard(batches)
    parsed = own.map(lambda lines: parse(lines, rows, paths), num_parallel_calls=tf.data.AUTOTUNE)
    return parsed.prefetch(tf.data.AUTOTUNE)


def parse(lines, rows, paths=()):
    """Features and labels of lines.

    Args:
        lines: String tensor `[batch]`.
        rows: Int, of each embedding table.
        paths: Where the lines are from, to say where one is that cannot be read.

    Returns:
        Dict of "numbers", log(1 + x), `[batch, 13]` float32, in which what is missing or
        negative is 0, and "categories", `[batch, 26]` int32 from 0 to `rows` − 1, in which
        0 is what is missing; and the labels, `[batch, 1]` float32.

    Raises:
        tf.errors.InvalidArgumentError: A line is not as it should be; says which, and why.
    """
    with tf.control_dependencies([_check(lines, paths)]):
        fields = tf.reshape(tf.strings.split(lines, "\t").values, [-1, FIELDS])
    labels, numbers, categories = tf.split(fields, [1, NUMBERS, CATEGORIES], axis=1)
    numbers = tf.strings.to_number(tf.where(numbers == "", "0", numbers))
    ids = tf.strings.to_hash_bucket_fast(categories, rows - 1) + 1
    features = {
        "numbers": tf.math.log1p(tf.maximum(numbers, 0)),
        "categories": tf.cast(tf.where(categories == "", tf.zeros_like(ids), ids), tf.int32),
    }
    return features, tf.strings.to_number(labels)


def _check(lines, paths):
    good = tf.strings.regex_full_match(lines, LINE)
    bad = lines[tf.argmin(tf.cast(good, tf.int32))]  # the first one, where there is one
    # Only here, and in Python: what lines carried along would slow down reading all of them.
    refuse = functools.partial(_refuse, paths)
    return tf.cond(
        tf.reduce_all(good), lambda: True, lambda: tf.py_function(refuse, [bad], tf.bool)
    )


def _refuse(paths, line):
    line = line.numpy()
    for path in paths:
        with opened(path) as file:
            for number, other in enumerate(file, start=1):
                if other.rstrip(b"\r\n") == line:
                    raise ValueError(f"{path}, line {number}: {fault(line)}")
    raise ValueError(fault(line))


def fault(line):
    """What is wrong with a line, bytes: a sentence."""
    fields = line.decode(errors="replace").split("\t")
    if len(fields) != FIELDS:
        return f"{FIELDS} fields with tabs between are wanted. Received {len(fields)}: {fields}"
    if not fields[0]:
        return "the label is missing. Lines without one, as in Kaggle's test.txt, are of no use."
    kinds = ["0 or 1"] + ["an integer"] * NUMBERS + ["up to 8 hexadecimal digits"] * CATEGORIES
    for place, (field, kind, form) in enumerate(zip(fields, kinds, FORMS), start=1):
        if not re.fullmatch(form, field):
            return f"field {place} must be {kind}. Received: {field!r}"
    raise AssertionError(f"nothing is wrong with {line}")
