"""The reference pages are those that the configuration writes."""

import json
import re

import pytest

from gsnr_tf.engine import docs, read
from gsnr_tf.engine.config import Config
from gsnr_tf.engine.load import section_of

PAGES = docs.pages()
GUIDES = {"from_deepspeed.md", "from_horovod.md"}


def test_no_page_is_missing_and_none_is_left_over():
    assert {path.name for path in docs.FOLDER.iterdir()} == set(PAGES) | GUIDES


@pytest.mark.parametrize("name", PAGES)
def test_the_pages_are_up_to_date(name):
    """`gsnr-tf config docs` writes them anew."""
    assert (docs.FOLDER / name).read_text(encoding="utf-8") == PAGES[name]


def examples(text):
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.S)]


@pytest.mark.parametrize("name", sorted(set(PAGES) | GUIDES))
def test_the_examples_can_be_used(name):
    base = {"train_batch_size": 8, "optimizer": {"type": "GSNRLamb"}}
    for example in examples((docs.FOLDER / name).read_text(encoding="utf-8")):
        read({**base, **example})


def test_every_key_has_a_page_a_default_and_a_meaning():
    for name, section in [("job", Config), *docs.sections(Config)]:
        for key, field in section.model_fields.items():
            if not section_of(field):
                assert field.description and f"| `{key}` |" in PAGES[f"{name}.md"]
