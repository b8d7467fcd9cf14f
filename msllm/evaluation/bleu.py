"""Translation quality by sacrebleu."""

from collections.abc import Sequence

from msllm.errors import UserError


def bleu(
    translations: Sequence[str], references: Sequence[str], lowercase: bool = False, tokenize: str = "13a"
) -> dict[str, float | str]:
    """Returns corpus BLEU (Papineni et al. 2002) and chrF (Popović 2015), each 0 to 100.

    Args:
        translations, references: plain sentences, one reference each.
        lowercase: compare without regard to case.
        tokenize: sacrebleu's tokeniser: 13a for European languages, zh for Chinese, none for text cut in tokens.

    Returns:
        {"bleu", "chrf", "brevity_penalty", "signature"}; the signature names all settings, so that others can repeat
        the figure (Post 2018).
    """
    if len(translations) != len(references):
        raise UserError(f"{len(translations)} translations and {len(references)} references; give one for each")
    from sacrebleu.metrics import BLEU, CHRF

    metric, references = BLEU(lowercase=lowercase, tokenize=tokenize), [list(references)]
    score = metric.corpus_score(list(translations), references)
    return {
        "bleu": score.score,
        "chrf": CHRF(lowercase=lowercase).corpus_score(list(translations), references).score,
        "brevity_penalty": score.bp,
        "signature": str(metric.get_signature()),
    }
