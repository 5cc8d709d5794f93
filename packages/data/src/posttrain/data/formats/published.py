"""The published datasets that users name most: a few lines each, with the readers that their shape shares.

Column names are those of the Hub. To add one: an entry here, or a file beside this one where it needs its own reading.
"""

from posttrain.data.formats import generic, math, mixtures, oasst, scored
from posttrain.data.formats.format import Format

ULTRACHAT = Format(  # Ding et al. 2023, as filtered for Zephyr; splits train_sft, test_sft, train_gen, test_gen
    name="ultrachat",
    hub_ids=("HuggingFaceH4/ultrachat_200k",),
    columns={"messages": "messages"},
    kind="ultrachat",
    conversation=mixtures.chat,
    prompt=mixtures.opening,
)
TULU = Format(  # Ivison et al. 2023, Lambert et al. 2024; `where: {source: …}` (`dataset` in v2) takes one of its parts
    name="tulu",
    hub_ids=("allenai/tulu-v2-sft-mixture", "allenai/tulu-3-sft-mixture"),
    columns={"messages": "messages"},
    kind="tulu",
    conversation=mixtures.chat,
    prompt=mixtures.opening,
)
LIMA = Format(  # Zhou et al. 2023; the test split has questions only
    name="lima",
    hub_ids=("GAIR/lima",),
    columns={"messages": "conversations"},
    kind="lima",
    conversation=mixtures.alternating_chat,
    prompt=mixtures.alternating_opening,
)
ALPACA = Format(  # Taori et al. 2023; the input, where there is one, follows the instruction after a blank line
    name="alpaca",
    hub_ids=("tatsu-lab/alpaca", "yahma/alpaca-cleaned", "vicgalle/alpaca-gpt4"),
    columns={
        "messages": "messages",
        "prompt": "{instruction}\n\n{input}",
        "completion": "output",
        "reference": "reference",
    },
    kind="alpaca",
    conversation=generic.conversation,
    prompt=generic.prompt,
)
ULTRAFEEDBACK_BINARIZED = Format(  # Tunstall et al. 2023; splits train_prefs, test_prefs, train_sft, test_sft, …_gen
    name="ultrafeedback-binarized",
    hub_ids=("HuggingFaceH4/ultrafeedback_binarized",),
    columns={
        "messages": "messages",
        "prompt": "prompt",
        "chosen": "chosen",
        "rejected": "rejected",
        "score_chosen": "score_chosen",
        "score_rejected": "score_rejected",
        "reference": "reference",
    },
    kind="ultrafeedback",
    conversation=mixtures.chat,
    pair=scored.binarized_pair,
    prompt=generic.prompt,
)
ULTRAFEEDBACK = Format(  # Cui et al. 2023; columns.score may be another one: `fine-grained_score`
    name="ultrafeedback",
    hub_ids=("openbmb/UltraFeedback",),
    columns={
        "prompt": "instruction",
        "completions": "completions",
        "text": "response",
        "score": "overall_score",
        "reference": "reference",
    },
    files_are_one_split=True,
    kind="ultrafeedback",
    pair=scored.extremes,
    ranking=scored.ranking,
    prompt=generic.prompt,
)
MATH = Format(  # Hendrycks et al. 2021; EleutherAI's has a configuration for each subject
    name="math",
    hub_ids=("hendrycks/competition_math", "EleutherAI/hendrycks_math", "HuggingFaceH4/MATH-500"),
    columns={"problem": "problem", "solution": "solution"},
    kind="math",
    conversation=math.conversation,
    prompt=math.prompt,
)
OASST = Format(  # Köpf et al. 2023; `where: {lang: en}` takes one language
    name="oasst",
    hub_ids=("OpenAssistant/oasst1", "OpenAssistant/oasst2"),
    columns=dict(generic.GENERIC.columns),
    kind="oasst",
    conversation=mixtures.chat,
    pair=generic.pair,
    ranking=generic.ranking,
    prompt=generic.prompt,
    regroup=oasst.regroup,
)

PUBLISHED = (ULTRACHAT, TULU, LIMA, ALPACA, ULTRAFEEDBACK_BINARIZED, ULTRAFEEDBACK, MATH, OASST)
