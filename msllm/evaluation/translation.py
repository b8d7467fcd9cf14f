"""A translator on a test set."""

from msllm.data.parallel_text import ParallelText
from msllm.evaluation.bleu import bleu
from msllm.generation import GenerationConfig
from msllm.generation.translate import translate


def score_translator(
    model, tokenizer, pairs: ParallelText, config: GenerationConfig, lowercase: bool = False, tokenize: str = "13a"
) -> tuple[dict, list[str]]:
    """Translates the source side and compares with the target side.

    Args:
        model, tokenizer: see msllm.generation.translate.
        pairs: the test set.
        config: of the search.
        lowercase, tokenize: see msllm.evaluation.bleu.

    Returns:
        The figures of bleu with the options of the search, and the translations.
    """
    translations = translate(model, tokenizer, pairs.source, config, batch_size=50)
    search = {"num_beams": config.num_beams, "length_penalty": config.length_penalty}
    return {**search, **bleu(translations, pairs.target, lowercase, tokenize)}, translations
